"""A recurrent layer's state, as transformers keeps it: taken, and put back."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.cache_utils import LinearAttentionCacheLayerMixin, LinearAttentionLayer

from unspoken.agents.models.caches.rows import RowsLayer
from unspoken.channels.kv.geometry import LayerGeometry, RecurrentPart


class RecurrentLayer(LinearAttentionLayer, RowsLayer):  # type: ignore[no-untyped-call, override]
    """A layer with a recurrent state, and with rows where its shape has heads."""

    is_compileable = False

    def __init__(self, shape: LayerGeometry, capacity: int) -> None:
        RowsLayer.__init__(self, shape, capacity)
        numbers = {int(part.name.split(".")[1]) for part in shape.recurrent}
        LinearAttentionLayer.__init__(self, number_of_states=max(numbers) + 1)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Of rows with two tensors, of the recurrent state with names, as transformers calls it."""
        of = RowsLayer if args else LinearAttentionLayer
        of.lazy_initialization(self, *args, **kwargs)

    def taken(self) -> dict[str, Tensor]:
        """A copy of the state now, by the names of `RecurrentPart`, without the batch."""
        return {name: tensor[0].clone() for name, tensor in parts_of(self).items()}

    def put(self, parts: Mapping[str, Tensor]) -> None:
        """Go on from a copy of this state; begin anew without one."""
        LinearAttentionLayer.__init__(self, number_of_states=self.number_of_states)
        for name, tensor in parts.items():
            what, at = name.split(".")
            number = int(at)
            held = tensor[None].clone()
            self.device = held.device  # type: ignore[assignment]  # None in its base
            self.dtype = held.dtype  # type: ignore[assignment]
            self.has_previous_state[number] = True
            if what == "conv":
                self.conv_states[number] = held
                self.conv_kernel_size[number] = held.shape[-1]
                self.is_conv_states_initialized[number] = True
            else:
                self.recurrent_states[number] = held
                self.is_recurrent_states_initialized[number] = True


def parts_of(layer: LinearAttentionCacheLayerMixin) -> dict[str, Tensor]:
    """The tensors of a recurrent layer of transformers, by the names of `RecurrentPart`."""
    parts = {}
    for number in range(layer.number_of_states):
        for name, states in (("conv", layer.conv_states), ("recurrent", layer.recurrent_states)):
            held = states[number]
            if held is not None:
                parts[f"{name}.{number}"] = held
    return parts


def shapes_of(layer: LinearAttentionCacheLayerMixin) -> tuple[RecurrentPart, ...]:
    """The same as shapes, without the batch."""
    return tuple(
        RecurrentPart(name=name, shape=tuple(tensor.shape[1:]), dtype=tensor.dtype)
        for name, tensor in parts_of(layer).items()
    )


class LinearLists:
    """The state of linear attention in layers, for a model that reads and writes a list."""

    layers: list[Any]

    def __len__(self) -> int:
        return len(self.layers)

    def get_linear_cache(self, layer_idx: int) -> Tensor | None:
        """What the model has set."""
        state: Tensor | None = self.layers[layer_idx].recurrent_states[0]
        return state

    def set_linear_cache(self, layer_idx: int, linear_cache: Tensor) -> None:
        """Keep what the model has now."""
        self.layers[layer_idx].recurrent_states[0] = linear_cache
