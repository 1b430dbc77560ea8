"""The caches of several turns as one, for a step in which each computes one token.

Recurrent states have no length, so they are laid one behind another. Rows end together: what a
shorter context lacks stands before its first row, and is masked.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, LinearAttentionLayer

from unspoken.agents.models.caches.recurrent import LinearLists, RecurrentLayer, parts_of
from unspoken.agents.models.caches.rows import RowsLayer


class StackedRows(CacheLayerMixin):  # type: ignore[no-untyped-call]  # its base has no types
    """One layer's rows of several turns; they grow when the step is kept, and not before."""

    is_compileable = False

    def __init__(self, rows: Sequence[RowsLayer]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = rows
        self.is_sliding = rows[0].window is not None
        self.longest = max(layer.length for layer in rows)
        self.width = max(layer.length + 1 - layer.visible_from() for layer in rows)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to make."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write each turn's new row, and give all that each sees, with zeros before it."""
        keys, values = (
            new.new_zeros(*new.shape[:2], self.width, new.shape[3])
            for new in (key_states, value_states)
        )
        for number, layer in enumerate(self.rows):
            first, last = layer.visible_from(), layer.length
            layer.reserve(last + 1, key_states)
            layer.keys[0, :, last] = key_states[number, :, 0]
            layer.values[0, :, last] = value_states[number, :, 0]
            at = self.width - (last + 1 - first)
            keys[number, :, at:] = layer.keys[0, :, first : last + 1]
            values[number, :, at:] = layer.values[0, :, first : last + 1]
        return keys, values

    def keep(self) -> None:
        """Let the new rows be of the turns' contexts."""
        for layer in self.rows:
            if layer.shape.kv_heads:  # nothing was written into others
                layer.length += 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.width, self.longest + query_length - self.width

    def get_seq_length(self) -> int:
        return self.longest

    def get_max_length(self) -> int:
        return -1


class StackedRecurrent(LinearAttentionLayer, StackedRows):  # type: ignore[no-untyped-call, override]
    """A recurrent layer's states of several turns, and its rows where it has heads."""

    is_compileable = False

    def __init__(self, layers: Sequence[RecurrentLayer]) -> None:
        StackedRows.__init__(self, layers)
        self.layers, first = layers, layers[0]
        LinearAttentionLayer.__init__(self, number_of_states=first.number_of_states)
        self.device, self.dtype = first.device, first.dtype
        for number in range(first.number_of_states):
            self.has_previous_state[number] = first.has_previous_state[number]
            self.conv_kernel_size[number] = first.conv_kernel_size[number]
            self.is_conv_states_initialized[number] = first.is_conv_states_initialized[number]
            ready = first.is_recurrent_states_initialized[number]
            self.is_recurrent_states_initialized[number] = ready
        for name in parts_of(first):
            what, at = name.split(".")
            together = torch.cat([parts_of(layer)[name] for layer in layers])
            getattr(self, f"{what}_states")[int(at)] = together

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to make of rows; of recurrent states what transformers makes."""
        of = StackedRows if args else LinearAttentionLayer
        of.lazy_initialization(self, *args, **kwargs)

    def keep(self) -> None:
        """Let each turn have its own of the new states, and its new row."""
        StackedRows.keep(self)
        for name, together in parts_of(self).items():
            for row, layer in enumerate(self.layers):
                parts_of(layer)[name].copy_(together[row : row + 1])


class StackedCache(Cache):
    """Several turns' layers as one cache of as many rows.

    Args:
        turns: The layers of each turn; none of them is empty.
    """

    def __init__(self, turns: Sequence[Sequence[RowsLayer]]) -> None:
        self.stacks = [_stacked(layers) for layers in zip(*turns, strict=True)]
        Cache.__init__(self, layers=list(self.stacks))

    @property
    def is_linear(self) -> list[bool]:
        """Which layers have a recurrent state alone; transformers makes no mask by them."""
        return [stack.rows[0].shape.kind == "recurrent" for stack in self.stacks]

    def keep(self) -> None:
        """Let what the step made be of the turns' contexts."""
        for stack in self.stacks:
            stack.keep()


def stacked_class(own: type[Cache] | None) -> type[StackedCache]:
    """The class of a model's stacked caches, as `cache_class` is of those of one turn."""
    if own is None:
        return StackedCache
    return type("LinearStackedCache", (LinearLists, StackedCache, own), {})


def _stacked(layers: Sequence[RowsLayer]) -> StackedRows:
    recurrent = [layer for layer in layers if isinstance(layer, RecurrentLayer)]
    return StackedRecurrent(recurrent) if recurrent else StackedRows(layers)
