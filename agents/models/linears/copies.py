"""Packed copies of weights, each for all layers on those weights, and products with them.

Layers that read one input, such as the three that make queries, keys and values, have one copy
together. The first of them that is called computes for all; the others take their part. For a few
rows one product of many outputs is much quicker than several of few. Where they turn out to read
inputs of their own, each still computes for all and takes its part: a plain product could round a
row otherwise, by the rows beside it.
"""

from collections.abc import Iterator, Sequence
from threading import local
from typing import NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from unspoken.agents.models.linears.onednn import multiply, pack

__all__ = ["Copy", "copy_of", "forget", "has_copy", "partners", "place", "product"]

PARTNERS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of layers in one module that read one input."""


class Copy:
    """A packed copy of weights in memory; of several, their rows follow each other.

    It keeps the weights' memory, so that no other tensors come to stand at their addresses.

    Args:
        weights: The weights, (out, in) each.
        pads: Whether a single row is computed as two.
    """

    def __init__(self, weights: Sequence[Tensor], pads: bool) -> None:
        self.of, self.pads = [weight.detach() for weight in weights], pads
        self.sizes = [weight.shape[0] for weight in weights]
        self.dtype = weights[0].dtype
        self.renew()

    def renew(self) -> None:
        """Copy the weights as they are now."""
        # The tensors on one memory have its version in common.
        self.marks = [(weight.data_ptr(), weight._version, weight.dtype) for weight in self.of]
        self.packed = pack(self.of[0] if len(self.of) == 1 else torch.cat(self.of))

    def is_of(self, number: int, weight: Tensor) -> bool:
        """Whether it has a weight as it is, as far as torch counts changes."""
        return (weight.data_ptr(), weight._version, weight.dtype) == self.marks[number]

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return sum(weight.numel() * weight.element_size() for weight in self.of)


class _Product(NamedTuple):
    """The last product for several layers on a thread.

    Nothing counts the changes of an inference tensor, so of one there is a copy, and no version.
    Each layer takes its output once, since it may be changed where it went.
    """

    copied: Copy
    input: Tensor
    version: int | None
    outputs: list[Tensor | None]

    def is_of(self, copied: Copy, input: Tensor) -> bool:
        """Whether it is that of an input as it is now."""
        if self.copied is not copied or input.is_inference() != (self.version is None):
            return False
        if self.version is None:
            return torch.equal(self.input, input)
        return self.input is input and self.version == input._version


class _Last(local):
    product: _Product | None = None


_LAST = _Last()
_COPIES: "WeakValueDictionary[tuple[object, ...], Copy]" = WeakValueDictionary()


def product(copied: Copy, number: int, input: Tensor, bias: Tensor | None) -> Tensor | None:
    """One layer's product, (…, out), of an input (…, in); None where it is not to be had.

    Args:
        copied: The layer's copy.
        number: Which of the copy's weights is the layer's.
        input: Its input.
        bias: Its bias.
    """
    if len(copied.of) == 1:
        return multiply(input, copied.packed, bias, pads=copied.pads)
    last = _LAST.product
    if last is None or not last.is_of(copied, input) or last.outputs[number] is None:
        together = multiply(input, copied.packed, None, pads=copied.pads)
        outputs = list[Tensor | None](torch.split(together, copied.sizes, dim=-1))
        if input.is_inference():
            last = _Product(copied, input.clone(), None, outputs)
        else:
            last = _Product(copied, input, input._version, outputs)
        _LAST.product = last
    output, last.outputs[number] = last.outputs[number], None
    return output if bias is None or output is None else output + bias


def forget() -> None:
    """Let go of this thread's last product."""
    _LAST.product = None


def partners(model: nn.Module, layers: Sequence[nn.Linear]) -> list[tuple[nn.Linear, ...]]:
    """`layers` of a model, those that read one input together."""
    free, groups = dict.fromkeys(layers), []
    for together in _named_together(model):
        widths = {layer.in_features for layer in together}
        if len(widths) == 1 and len(set(together)) == len(together) and free.keys() >= {*together}:
            groups.append(together)
            for layer in together:
                del free[layer]
    return [*groups, *((layer,) for layer in free)]


def _named_together(model: nn.Module) -> Iterator[tuple[nn.Linear, ...]]:
    for module in model.modules():
        for names in PARTNERS:
            children = [module._modules.get(name) for name in names]
            # An adapter's layer has the one that it changes within, which reads the same input.
            inner = [getattr(child, "base_layer", child) for child in children]
            together = tuple(layer for layer in inner if isinstance(layer, nn.Linear))
            if len(together) == len(names):
                yield together


def has_copy(weights: Sequence[Tensor]) -> bool:
    """Whether these weights together have one."""
    return _key(weights) in _COPIES


def copy_of(weights: Sequence[Tensor], pads: bool, anew: bool) -> Copy:
    """The copy of some weights: the one that others on them have, or a new one.

    Args:
        weights: The weights, (out, in) each.
        pads: As `Copy`.
        anew: Whether one of before does not count.
    """
    key = _key(weights)
    copied = _COPIES.get(key)
    if copied is None:
        copied = _COPIES[key] = Copy(weights, pads)
    elif anew or not all(map(copied.is_of, range(len(weights)), weights)):
        copied.renew()
    return copied


def _key(weights: Sequence[Tensor]) -> tuple[object, ...]:
    return tuple(map(place, weights))


def place(weight: Tensor) -> tuple[object, ...]:
    """What layers on one weight have in common."""
    return weight.data_ptr() or id(weight), weight.shape, weight.stride(), weight.dtype
