"""One set of weights in memory, and who computes on it.

Several models may share the weights of one transformers model: a base and its adapters, or two that
were made of one object. Whoever computes takes the lock of the weights first, has the right adapter
switched on, and gives the lock back after one operation. So no hook, no switch and no forward of
one meets those of another, on whatever thread they run.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from unspoken.agents.models.adapters import AdapterSwitch
from unspoken.agents.models.watch import Watch
from unspoken.channels.storage.forks import ForkLock

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

__all__ = ["OnWeights", "Weights", "holding", "weights_of"]


class Weights:
    """One set of weights in memory.

    Args:
        model: The transformers model that holds them.

    Attributes:
        lock: Held by whoever computes; its thread may take it again.
        adapters: The adapters that were loaded into the model, and which of them is on.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self.lock = ForkLock(RLock)
        self.adapters = AdapterSwitch(model)
        self._watch = Watch(model)
        self._head_hooked = False

    def generation(self, *, wait: bool = False) -> int:
        """How many times a program was found to have changed the weights from outside.

        Args:
            wait: Whether to wait for one who computes. Else the last answer counts meanwhile.
        """
        if not self.lock.acquire(blocking=wait):
            return self._watch.generation
        try:
            return self._watch.check()
        finally:
            self.lock.release()

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load an adapter, unless it is there; see `AdapterSwitch.add`."""
        with self.lock, self._watch.expecting():
            self.adapters.add(name, folder)

    def hook_head(self, head: "nn.Module", hook: Callable[..., Any]) -> None:
        """Hook the vocabulary's product, once for all models on these weights."""
        with self.lock:
            if not self._head_hooked:
                head.register_forward_pre_hook(hook)
                self._head_hooked = True

    @contextmanager
    def computing(self, adapter: str | None) -> Iterator[None]:
        """Have the weights to oneself, with this adapter on and all others off."""
        with self.lock:
            self.adapters.use(adapter)
            yield


class OnWeights(Protocol):
    """A model that computes on some weights."""

    @property
    def weights(self) -> Weights:
        """Its weights, perhaps shared."""


_KNOWN: "WeakKeyDictionary[PreTrainedModel, Weights]" = WeakKeyDictionary()
_MAKING = ForkLock()


def weights_of(model: "PreTrainedModel") -> Weights:
    """The one `Weights` of a transformers model, whoever asks."""
    with _MAKING:
        if model not in _KNOWN:
            _KNOWN[model] = Weights(model)
        return _KNOWN[model]


@contextmanager
def holding(models: Iterable[OnWeights]) -> Iterator[None]:
    """Keep some models' weights from all others, for work of many operations such as a fit.

    The locks are taken in one order, so that two who want the same weights never wait for each
    other. A turn that needs them meanwhile waits, and can be cancelled.
    """
    distinct = {id(model.weights): model.weights for model in models}
    with ExitStack() as stack:
        for _, weights in sorted(distinct.items()):
            stack.enter_context(weights.lock)
        yield
