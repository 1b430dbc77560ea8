"""The cache of transformers that a turn grows, and what the states put into it cover."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from unspoken.channels.errors import StateError
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry, ModelIdentity
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import CausalModel, layer_devices

_ALL = slice(None)


class _Rows(CacheLayerMixin):  # type: ignore[no-untyped-call]  # its base has no types
    """One layer's buffer, written in place and grown by half when full; it keeps every row."""

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
        heads, size = self.shape.kv_heads, self.shape.head_dim
        self.keys = key_states.new_zeros(1, heads, self.capacity, size)
        self.values = value_states.new_zeros(1, heads, self.capacity, size)
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


class ContextCache(Cache):
    """The growing cache of one turn alone; `snapshot` gives out states that never change.

    Rows below a snapshot's end are never written again, so snapshots are views and cost nothing.

    Args:
        geometry: Geometry of the model.
        capacity: Rows to allocate at first.
        identity: Whose states it gives out: the model's, as it was before it computed any.

    Attributes:
        approximate_from: First position whose rows are taken over as approximate; None for none.
    """

    def __init__(
        self, geometry: CacheGeometry, capacity: int, identity: ModelIdentity | None = None
    ) -> None:
        self.identity = identity
        self.rows = [_Rows(layer, capacity) for layer in geometry.layers]
        self.approximate_from: int | None = None
        super().__init__(layers=list(self.rows))

    @property
    def length(self) -> int:
        """Number of positions filled."""
        return self.rows[0].length

    def place(self, state: KVState, layers: slice = _ALL) -> None:
        """Copy a state to its positions, all layers or some."""
        for rows, layer in zip(self.rows[layers], state.layers[layers], strict=True):
            rows.place(layer, state.start)

    def scatter(self, positions: Tensor | None, stop: int, layers: slice) -> None:
        """Send the next update of some layers to `positions`, or, with None, to the end again."""
        for rows in self.rows[layers]:
            rows.scatter = None if positions is None else positions.to(rows.keys.device)
            if positions is not None:
                rows.length = max(rows.length, stop)

    def reserve(self, stop: int, likes: Sequence[Tensor], layers: slice) -> None:
        """Make room for positions 0 … stop - 1 in some layers, for each beside a tensor."""
        for rows, like in zip(self.rows[layers], likes, strict=True):
            rows.reserve(stop, like)

    def truncate(self, stop: int) -> None:
        """Forget positions from `stop` on; only before any of them was given out in a snapshot."""
        for rows in self.rows:
            rows.length = min(rows.length, stop)

    def close(self) -> None:
        """Its memory goes with its last view."""

    def check_window(self, position: int) -> None:
        """Refuse to compute a token that must see rows which a trimmed state lacks."""
        for number, rows in enumerate(self.rows):
            oldest = 0 if rows.window is None else max(position - rows.window + 1, 0)
            if rows.first > oldest:
                raise StateError(
                    f"layer {number} holds nothing before position {rows.first}",
                    expected=f"rows from position {oldest} on, which the token at {position} sees",
                    fix="do not trim a state that a splice or a repair will read",
                )

    def snapshot(self, stop: int | None = None) -> KVState:
        """The state of positions 0 … stop - 1 as views of the buffers."""
        assert self.identity is not None  # a cache that was opened has one
        stop = self.length if stop is None else stop
        layers = []
        for rows in self.rows:
            first = min(rows.first, stop)
            layers.append(
                LayerState(rows.keys[0, :, first:stop], rows.values[0, :, first:stop], first)
            )
        rough = self.approximate_from
        return KVState(
            layers=tuple(layers),
            start=0,
            stop=stop,
            identity=self.identity,
            approximate_from=rough if rough is not None and rough < stop else None,
        )


def open_cache(
    model: CausalModel,
    state: Sequence[KVState],
    positions: Sequence[int],
    *,
    spare: int,
    layers: slice = _ALL,
) -> ContextCache:
    """A cache of a model with states in place; see `Decoder.open`."""
    identity = model.identity
    for piece in state:
        identity.require(piece.identity, f"a state of positions {piece.start} to {piece.stop}")
        piece.check(model.geometry, model.dtype)
    end = max((piece.stop for piece in state), default=0)
    stop = max(end, positions[-1] + 1 if positions else 0)
    gap = first_gap(state, positions, stop)
    if gap is not None:
        raise StateError(
            f"nothing covers position {gap}",
            expected=f"states and new tokens that cover positions 0 to {stop} together",
        )
    cache = ContextCache(model.geometry, stop + spare, identity)
    cache.approximate_from = first_approximate(state, positions)
    devices = layer_devices(model)
    for piece in state:
        cache.place(piece.to(devices), layers)
    if positions:
        cache.check_window(positions[0])
    return cache


def first_gap(states: Sequence[KVState], new: Sequence[int], stop: int) -> int | None:
    """The first position below `stop` that neither a state nor a new token covers."""
    covered = bytearray(stop)
    for state in states:
        covered[state.start : state.stop] = b"\1" * len(state)
    for position in new:
        covered[position] = 1
    gap = covered.find(0)
    return None if gap < 0 else gap


def first_approximate(states: Sequence[KVState], new: Sequence[int]) -> int | None:
    """The first position whose rows are approximate and not recomputed, or None."""
    anew = set(new)
    rough = [
        next((p for p in range(state.approximate_from, state.stop) if p not in anew), None)
        for state in states
        if state.approximate_from is not None
    ]
    return min((position for position in rough if position is not None), default=None)
