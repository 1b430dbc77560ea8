"""Linear layers that compute with packed copies of their weights.

A copy stands beside the weights themselves: training, saving, adapters and identities read those.
It counts only while a `Backbone` computes, which looks at the weights before each operation. A
program that calls the transformers model itself gets torch's own product, so that what it changes
in the weights is never missed.
"""

import copyreg
import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from threading import local
from typing import Any, Literal

import structlog
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspoken.agents.models.linears.copies import (
    Copy,
    copy_of,
    forget,
    has_copy,
    partners,
    place,
    product,
)
from unspoken.agents.models.linears.int8 import has_int8
from unspoken.agents.models.linears.onednn import Packing, try_packing
from unspoken.channels.memory import free_host_bytes
from unspoken.channels.storage.forks import ForkLock

log = structlog.wrap_logger(logging.getLogger("unspoken.model"))

SHARE = 0.25
"""Most of the free memory that packed copies may take."""

GAIN = 1.05
"""Least gain that copies are worth."""

GAIN_ALIKE = 0.75
"""The same where a row's result then does not depend on the rows beside it, which is worth more."""

SMALLEST = 1 << 20
"""Fewest values in all linear layers that are worth a try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Linears:
    """How a model computes its linear layers.

    Attributes:
        kind: ``packed``: with copies of the weights, packed for this CPU. ``plain``: as torch does.
            ``int8``: with weights of one byte.
        reason: Why so, in a sentence for people.
        bytes: Memory that they take beside the weights.
        rows_alike: Whether a row's result is known to be the same, bit for bit, in a batch of any
            size.
    """

    kind: Literal["packed", "plain", "int8"]
    reason: str
    bytes: int = 0
    rows_alike: bool = False


class PackedLinear(nn.Linear):
    """A linear layer with a packed copy of its weight.

    Copied or pickled it is torch's own again.
    """

    copied: Copy
    number: int
    """Which of the copy's weights is this layer's."""

    def forward(self, input: Tensor) -> Tensor:
        """The product, (…, out_features), of (…, in_features)."""
        copied = self.copied
        if (
            getattr(_HERE, "computing", False)
            and not torch.is_grad_enabled()
            and input.dtype == copied.dtype
            and input.numel()
            and copied.is_of(self.number, self.weight)
            and not torch.is_autocast_enabled("cpu")
        ):
            output = product(copied, self.number, input, self.bias)
            if output is not None:
                return output
        return F.linear(input, self.weight, self.bias)

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = {name: value for name, value in self.__dict__.items() if name not in _OURS}
        # As an object of torch's own class without arguments, which needs nothing of this package.
        return copyreg._reconstructor, (nn.Linear, object, None), state  # type: ignore[attr-defined]


_OURS = ("copied", "number")
_HERE = local()
_MAKING = ForkLock()


@contextmanager
def computing(lock: AbstractContextManager[object]) -> Iterator[None]:
    """Hold the weights, and let this thread compute with packed copies of them."""
    with lock:
        before = getattr(_HERE, "computing", False)
        _HERE.computing = True
        try:
            yield
        finally:
            _HERE.computing = before
            forget()


def pack_linears(model: nn.Module, *, anew: bool = False) -> Linears:
    """Give a model's linear layers packed copies of their weights where that is worth it.

    Layers on one weight have one copy, of whatever models they are. Nothing raises: what cannot be
    packed computes as before.

    Args:
        model: Any model, in memory, on which nobody computes.
        anew: Whether the weights may have changed since the last call, so that no copy of before
            counts.
    """
    if has_int8(model):
        return Linears(kind="int8", reason="dtype int8 was asked for")
    layers = list(_layers(model))
    groups = partners(model, _alike(layers))
    with _MAKING:
        packing, copies = _worth(groups), {}
        if isinstance(packing, Packing):
            try:
                for group in groups:
                    copied = copy_of(_weights(group), packing.pads, anew)
                    copies.update({layer: (copied, at) for at, layer in enumerate(group)})
            except (MemoryError, RuntimeError) as error:
                packing, copies = f"the weights could not be packed: {error}", {}
        for layer in layers:
            _swap(layer, copies.get(layer))
    size = sum({id(copied): copied.nbytes for copied, _ in copies.values()}.values())
    linears = _told(packing, size, every=len(copies) == len(layers))
    log.debug(f"linear layers are {linears.kind}", reason=linears.reason, bytes=size)
    return linears


def expected_linears(model: nn.Module) -> Linears:
    """What `pack_linears` would do on this CPU with a model of which the weights are not loaded.

    Args:
        model: A model on torch's meta device, in the type that it would compute in.
    """
    layers = list(_layers(model))
    alike = _alike(layers)
    packing = _worth(partners(model, alike))
    size = 0 if isinstance(packing, str) else _values(alike) * alike[0].weight.element_size()
    return _told(packing, size, every=len(alike) == len(layers))


def _told(packing: Packing | str, size: int, *, every: bool) -> Linears:
    """What was done, or is to be, with layers of so many bytes."""
    if isinstance(packing, str):
        return Linears(kind="plain", reason=packing)
    reason, alike = _speed(packing), packing.rows_alike and every
    if alike:
        reason += ", and a row comes out the same in a batch of any size"
    return Linears(kind="packed", reason=reason, bytes=size, rows_alike=alike)


def _speed(packing: Packing) -> str:
    return f"products with packed weights are {packing.gain:.2f}x as fast on this CPU"


def _layers(model: nn.Module) -> Iterator[nn.Linear]:
    """The linear layers of torch's own class; a class derived from it may compute otherwise."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and type(module) in (nn.Linear, PackedLinear):
            yield module


def _alike(layers: list[nn.Linear]) -> list[nn.Linear]:
    """The layers of the type and place that most of the weights have."""
    kinds: dict[tuple[torch.device, torch.dtype], list[nn.Linear]] = {}
    for layer in layers:
        kinds.setdefault((layer.weight.device, layer.weight.dtype), []).append(layer)
    return max(kinds.values(), key=_values, default=[])


def _values(layers: Iterable[nn.Linear]) -> int:
    return sum({place(layer.weight): layer.weight.numel() for layer in layers}.values())


def _weights(group: Iterable[nn.Linear]) -> list[Tensor]:
    return [layer.weight for layer in group]


def _worth(groups: list[tuple[nn.Linear, ...]]) -> Packing | str:
    """What packing brings to layers of one type and place, or why it is not done."""
    layers = [layer for group in groups for layer in group]
    if not layers:
        return "it has no linear layers of torch"
    weight = layers[0].weight
    if weight.device.type not in ("cpu", "meta"):
        return "its weights are not on a CPU"
    if _values(layers) < SMALLEST:
        return "it is too small to gain by packing"
    missing = [layer for group in groups if not has_copy(_weights(group)) for layer in group]
    size, room = _values(missing) * weight.element_size(), free_host_bytes()
    if room is not None and size > SHARE * room:
        return f"packed copies take {size / 1e9:.1f} GB, more than {SHARE:.0%} of the free memory"
    packing = try_packing([_weights(group) for group in groups])
    if isinstance(packing, Packing):
        least = GAIN_ALIKE if packing.rows_alike else GAIN
        if packing.gain < least:
            return _speed(packing)
    return packing


def _swap(layer: nn.Linear, copied: tuple[Copy, int] | None) -> None:
    """Make a layer compute with its part of a copy, or as torch does without one."""
    if copied is not None:  # before the class, which reads them
        vars(layer)["copied"], vars(layer)["number"] = copied
    layer.__class__ = nn.Linear if copied is None else PackedLinear
    if copied is None:
        for name in _OURS:
            vars(layer).pop(name, None)
