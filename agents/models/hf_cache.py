"""The cache of transformers that a turn grows, and what the states put into it cover."""

from collections.abc import Callable, Sequence

from torch import Tensor
from transformers import Cache

from unspoken.agents.models.caches.recurrent import LinearLists, RecurrentLayer
from unspoken.agents.models.caches.rows import IndexedLayer, RowsLayer
from unspoken.channels.errors import StateError
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry, ModelIdentity
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.snapshot import Snapshot, last_before
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import CausalModel, layer_devices

_ALL = slice(None)


class ContextCache(Cache):
    """The growing cache of one turn alone; `snapshot` gives out states that never change.

    Rows below a snapshot's end are never written again, so snapshots are views and cost nothing.

    Args:
        geometry: Geometry of the model.
        capacity: Rows to allocate at first.
        identity: Whose states it gives out: the model's, as it was before it computed any.

    Attributes:
        approximate_from: First position whose rows are taken over as approximate; None for none.
        hops: Inexact hand-overs in a row that such rows came through.
        snapshots: What recurrent layers have at some positions, ascending.
    """

    def __init__(
        self, geometry: CacheGeometry, capacity: int, identity: ModelIdentity | None = None
    ) -> None:
        self.identity = identity
        self.rows = [_layer(shape, capacity) for shape in geometry.layers]
        self._recurrent = {
            number: rows
            for number, rows in enumerate(self.rows)
            if isinstance(rows, RecurrentLayer)
        }
        # No model writes into them, so nothing but this cache tells them how long they are.
        self._without_rows = [rows for rows in self.rows if not rows.shape.kv_heads]
        self.approximate_from: int | None = None
        self.hops = 0
        self.snapshots: list[Snapshot] = []
        Cache.__init__(self, layers=list(self.rows))

    @property
    def is_linear(self) -> list[bool]:
        """Which layers have a recurrent state alone; transformers makes no mask by them."""
        return [rows.shape.kind == "recurrent" for rows in self.rows]

    @property
    def length(self) -> int:
        """Number of positions filled."""
        return self.rows[0].length

    def place(self, state: KVState, layers: slice = _ALL) -> None:
        """Copy a state to its positions, all layers or some."""
        for rows, layer in zip(self.rows[layers], state.layers[layers], strict=True):
            rows.place(layer, state.start)
        self.snapshots += state.snapshots

    def filled(self, stop: int, like: Tensor) -> None:
        """Positions up to `stop` were computed: what models do not tell layers without rows."""
        for rows in self._without_rows:
            rows.reserve(stop, like)
            rows.length = stop

    def mark(self) -> None:
        """Take a snapshot of the recurrent layers, if there are any, where the rows end."""
        at = self.length
        if self._recurrent and at and (not self.snapshots or self.snapshots[-1].at < at):
            layers = {number: layer.taken() for number, layer in self._recurrent.items()}
            self.snapshots.append(Snapshot(at, layers))

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
        """Forget positions from `stop` on; only before any of them was given out in a state.

        With recurrent layers it goes back to the last snapshot before that, or to the beginning.
        """
        if stop >= self.length:
            return
        if self._recurrent:
            snapshot = last_before(self.snapshots, stop)
            stop = 0 if snapshot is None else snapshot.at
            self._restore(snapshot)
        for rows in self.rows:
            rows.truncate(stop)

    def _restore(self, snapshot: Snapshot | None) -> None:
        """Let the recurrent layers go on from a snapshot, or, without one, begin anew."""
        for number, layer in self._recurrent.items():
            layer.put({} if snapshot is None else snapshot.layers[number])
        at = 0 if snapshot is None else snapshot.at
        self.snapshots = [one for one in self.snapshots if one.at <= at]

    def resume(self, position: int) -> None:
        """Let the recurrent layers go on at a position, once the states before it are placed.

        Raises:
            StateError: No snapshot stands there.
        """
        if not self._recurrent or not position:
            return
        snapshot = last_before(self.snapshots, position)
        if snapshot is None or snapshot.at != position:
            raise StateError(
                f"the recurrent layers have no snapshot at position {position}",
                expected="a state that ends where a snapshot stands: at the end of a turn",
                fix="cut the state there with `KVState.usable`, and compute the rest again",
            )
        self._restore(snapshot)

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
        if stop == self.length:
            self.mark()
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
            hops=self.hops if rough is not None and rough < stop else 0,
            snapshots=tuple(one for one in self.snapshots if one.at <= stop),
        )


def _layer(shape: LayerGeometry, capacity: int) -> RowsLayer:
    if shape.recurrent:
        return RecurrentLayer(shape, capacity)
    return IndexedLayer(shape, capacity) if shape.indexer else RowsLayer(shape, capacity)


def cache_class(own: type[Cache] | None) -> type[ContextCache]:
    """The class of a model's caches, which is also of the class that the model insists on."""
    if own is None:
        return ContextCache
    return type("LinearContextCache", (LinearLists, ContextCache, own), {})


def open_cache(
    model: CausalModel,
    state: Sequence[KVState],
    positions: Sequence[int],
    *,
    spare: int,
    layers: slice = _ALL,
    make: Callable[[CacheGeometry, int, ModelIdentity], ContextCache] = ContextCache,
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
    _require_order(model.geometry, end, positions)
    cache = make(model.geometry, stop + spare, identity)
    cache.approximate_from = first_approximate(state, positions)
    cache.hops = max((piece.hops for piece in state), default=0)
    devices = layer_devices(model)
    for piece in state:
        cache.place(piece.to(devices), layers)
    cache.resume(end)
    if positions:
        cache.check_window(positions[0])
    return cache


def _require_order(geometry: CacheGeometry, end: int, positions: Sequence[int]) -> None:
    """Refuse what recurrent layers cannot do: to compute anything but what follows."""
    if not geometry.recurrent or not positions:
        return
    if positions[0] != end or positions[-1] - positions[0] != len(positions) - 1:
        raise StateError(
            f"recurrent layers cannot compute position {positions[0]} of {end} that are there",
            expected="tokens that follow all states, without a gap",
            fix="use text or a continuation for this model",
        )


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
