"""One set of weights in memory, and who computes on it.

Several models may share the weights of one transformers model: a base and its adapters, or two that
were made of one object. Whoever computes takes the lock of the weights first and gives it back
after one operation. So no hook and no forward of one meets those of another, on whatever thread
they run.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from threading import RLock
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

from unspoken.channels.storage.forks import ForkLock

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Weights:
    """One set of weights in memory.

    Attributes:
        lock: Held by whoever computes; its thread may take it again.
        operation: Number of the operation that a worker is at, 0 between two. What was looked at
            once in an operation need not be looked at again in it.
    """

    def __init__(self) -> None:
        self.lock = ForkLock(RLock)
        self.operation = 0
        self._operations = count(1)

    @contextmanager
    def one_operation(self) -> Iterator[None]:
        """An operation of a worker, which holds the lock."""
        self.operation = next(self._operations)
        try:
            yield
        finally:
            self.operation = 0

    def hook_head(self, head: "nn.Module", hook: Callable[..., Any]) -> None:
        """Hook the vocabulary's product, unless it or the module it was copied from has been."""
        with self.lock:
            if hook not in head._forward_pre_hooks.values():
                head.register_forward_pre_hook(hook)


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
            _KNOWN[model] = Weights()
        return _KNOWN[model]


def share_weights(model: "PreTrainedModel", weights: Weights) -> None:
    """Count a model among those that compute on these weights, since it shares their memory."""
    with _MAKING:
        _KNOWN[model] = weights


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
