"""The rows of one layer, as transformers writes and reads them."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from unspoken.channels.kv.geometry import LayerGeometry
from unspoken.channels.kv.layer_state import LayerState


class RowsLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # its base has no types
    """One layer's buffer, written in place and grown by half when full; it keeps every row.

    A layer without heads has rows of no element, so that it has a length as all others.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, shape: LayerGeometry, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shape, self.window, self.capacity = shape, shape.window, capacity
        self.is_sliding = shape.window is not None
        self.length = 0
        self.first = 0
        self.scatter: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        shape = self.shape
        self.keys = key_states.new_zeros(1, shape.kv_heads, self.capacity, shape.head_dim)
        self.values = value_states.new_zeros(1, shape.kv_heads, self.capacity, shape.values)
        self.is_initialized = True

    def reserve(self, rows: int, like: Tensor) -> None:
        """Make room for `rows` rows in all, of the dtype and on the device of `like`."""
        if not self.is_initialized:
            self.capacity = max(self.capacity, rows)
            self.lazy_initialization(like, like)
        if rows <= self.capacity:
            return
        self.capacity = max(rows, self.capacity + self.capacity // 2)
        keys, values = self.keys, self.values
        self.lazy_initialization(keys, values)
        self.keys[:, :, : self.length] = keys[:, :, : self.length]
        self.values[:, :, : self.length] = values[:, :, : self.length]

    def place(self, layer: LayerState, start: int) -> None:
        """Copy a state's rows to their positions; rows a trimmed state lacks stay zero."""
        stop = layer.first + layer.rows
        self.reserve(stop, layer.keys)
        self.keys[0, :, layer.first : stop] = layer.keys
        self.values[0, :, layer.first : stop] = layer.values
        if layer.first > start:
            self.first = max(self.first, layer.first)
        self.length = max(self.length, stop)

    def truncate(self, stop: int) -> None:
        """Forget rows from `stop` on."""
        self.length = min(self.length, stop)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.scatter is not None:
            self.keys.index_copy_(2, self.scatter, key_states)
            self.values.index_copy_(2, self.scatter, value_states)
            return self.keys[:, :, : self.length], self.values[:, :, : self.length]
        stop = self.length + key_states.shape[2]
        first = self.visible_from()
        self.reserve(stop, key_states)
        self.keys[:, :, self.length : stop] = key_states
        self.values[:, :, self.length : stop] = value_states
        self.length = stop
        return self.keys[:, :, first:stop], self.values[:, :, first:stop]

    def visible_from(self) -> int:
        """First position the next token sees."""
        return 0 if self.window is None else max(self.length - self.window + 1, 0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        if self.scatter is not None:
            return self.length, 0
        first = self.visible_from()
        return self.length + query_length - first, first

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


class IndexedLayer(RowsLayer):  # type: ignore[no-untyped-call]  # as above
    """Rows whose keys have an indexer's keys behind them, in the last `shape.indexer` numbers."""

    def __init__(self, shape: LayerGeometry, capacity: int) -> None:
        super().__init__(shape, capacity)
        self.indexed = 0

    def place(self, layer: LayerState, start: int) -> None:
        super().place(layer, start)
        self.indexed = self.length

    def truncate(self, stop: int) -> None:
        super().truncate(stop)
        self.indexed = self.length

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        size = key_states.shape[3]
        if self.scatter is not None:
            behind = self.keys[:, :, self.scatter, size:]
            rows = torch.cat((key_states, behind), dim=3)
            keys, values = super().update(rows, value_states)
            return keys[..., :size], values
        behind = key_states.new_zeros(*key_states.shape[:3], self.shape.indexer)
        if self.indexed > self.length:  # the indexer came first
            behind = self.keys[:, :, self.length : self.indexed, size:].clone()
        keys, values = super().update(torch.cat((key_states, behind), dim=3), value_states)
        return keys[..., :size], values

    def update_indexer(self, indexer_key_states: Tensor) -> Tensor:
        """Keep an indexer's keys, (1, tokens, size), and give all of them, (1, rows, size)."""
        start, size = self.indexed, self.shape.head_dim - self.shape.indexer
        if self.scatter is not None:
            self.keys[:, 0, self.scatter, size:] = indexer_key_states
            self.indexed = self.length
            return self.keys[:, 0, : self.length, size:]
        self.indexed = start + indexer_key_states.shape[1]
        self.reserve(self.indexed, indexer_key_states)
        self.keys[:, 0, start : self.indexed, size:] = indexer_key_states
        return self.keys[:, 0, : self.indexed, size:]
