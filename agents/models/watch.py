"""Whether the weights in memory are those of before: a program may train or merge them any time."""

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLED = 8
"""Values of each tensor that are compared."""


class Watch:
    """Tells when a model's tensors, or its configuration, are not those of before.

    Per tensor it compares the place in memory, the shape, the type, torch's count of changes in
    place, and a few values, since writes through ``.data`` are not counted. That takes less than a
    millisecond for 300 tensors on a CPU. What it cannot see is a write through ``.data`` or numpy
    to single values that are not among the few.

    Args:
        model: The model to watch; it is not kept alive.

    Attributes:
        generation: How many times the model was found changed.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = ref(model)
        self.generation = 0
        self._seen = _look(model)

    def check(self) -> int:
        """Look at the model; its generation, one more than before where it was changed."""
        model = self._model()
        if model is not None:
            seen = _look(model)
            if seen != self._seen:
                self._seen = seen
                self.generation += 1
        return self.generation


def _look(model: "PreTrainedModel") -> tuple[Any, ...]:
    """What is compared of a model."""
    tensors = list(weights_in(model))
    heads = [(one.data_ptr(), one._version, one.shape, one.dtype) for one in tensors]
    return heads, _sample(tensors), _entries(getattr(model, "config", None))


def _entries(config: Any) -> Any:
    """A copy of a configuration that equals another one's if the entries are equal."""
    decoder = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(decoder, "is_heterogeneous", False):  # entries by layer, which nothing compares
        return config.to_dict()
    return copy.deepcopy(config)


@torch.no_grad()
def _sample(tensors: list[Tensor]) -> list[bytes]:
    """A few values of each tensor, as bytes."""
    alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if not tensor.is_meta and tensor.layout == torch.strided and tensor.is_contiguous():
            count = min(SAMPLED, tensor.numel())
            middle = tensor.storage_offset() + (tensor.numel() - count) // 3
            piece = torch.as_strided(tensor, (count,), (1,), middle)
            alike.setdefault((tensor.dtype, tensor.device), []).append(piece)
    return [
        torch.cat(pieces).cpu().view(torch.uint8).numpy().tobytes() for pieces in alike.values()
    ]


def weights_in(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and stored buffers, as quickly as they can be walked; tied ones repeat."""
    waiting = [model]
    while waiting:
        module = waiting.pop()
        for parameter in module._parameters.values():
            if parameter is not None:
                yield from stored_in(parameter)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield buffer
        waiting += [child for child in module._modules.values() if child is not None]


def stored_in(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that one is made of: itself, or those of a quantised one, in order."""
    if not hasattr(type(tensor), "__tensor_flatten__"):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    for name in names:
        yield from stored_in(getattr(tensor, name))
