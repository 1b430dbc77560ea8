"""A context under way: a prefix that others may share, and rows of its own after it."""

from collections.abc import Sequence as Listed
from dataclasses import dataclass, field

import torch

from unspoken.agents.models.hf_cache import first_approximate, first_gap
from unspoken.agents.models.ragged.runs import Run, runs_of
from unspoken.agents.models.ragged.tails import TailPool, Tails
from unspoken.channels.errors import StateError
from unspoken.channels.kv.geometry import CacheGeometry, ModelIdentity
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.state import KVState

FEW_ROWS = 128
"""So many rows at a prefix's end are copied, where a piece of memory more costs more."""

MOST_CHUNKS = 6
"""Pieces of memory that a prefix may have; what lies behind them is copied."""


@dataclass(eq=False)
class Sequence:
    """The rows of one turn's context. It is used by whoever has the weights.

    Attributes:
        identity: Whose rows they are.
        geometry: Their shape.
        prefix: State of positions 0 … start - 1, by reference; None for none.
        start: Position of the first row of its own.
        runs: The prefix's pieces of memory on the layers of each window.
        pool: Where it gets room for its own rows.
        tails: Where its own rows are.
        slot: Its slot there.
        length: Positions filled.
        firsts: Per layer, the first position of its own rows that is there: trimmed states lack
            some.
        approximate_from: First position whose rows were taken over as approximate.
        hops: Inexact hand-overs in a row that such rows came through.
    """

    identity: ModelIdentity
    geometry: CacheGeometry
    prefix: KVState | None
    start: int
    runs: dict[int | None, tuple[Run, ...]]
    pool: TailPool
    tails: Tails
    slot: int
    length: int
    firsts: list[int] = field(default_factory=list)
    approximate_from: int | None = None
    hops: int = 0

    def place(self, state: KVState) -> None:
        """Copy a state's rows to their positions; rows that a trimmed state lacks stay zero."""
        for number, (rows, layer) in enumerate(zip(self.tails.layers, state.layers, strict=True)):
            begin, end = layer.first - self.start, layer.first - self.start + layer.rows
            rows[0, self.slot, :, begin:end] = layer.keys
            rows[1, self.slot, :, begin:end] = layer.values
            if layer.first > state.start:
                self.firsts[number] = max(self.firsts[number], layer.first)
        self.length = max(self.length, state.stop)

    def reserve(self, stop: int) -> None:
        """Make room up to position `stop`: where there is too little, the rows move to a new slot.

        A turn knows what it will need. Only the ids that close it may be more than it thought.
        """
        if stop - self.start <= self.tails.capacity:
            return
        before, filled = self.tails, self.length - self.start
        tails = self.pool.of(stop - self.start, before.dtype, before.device)
        slot = tails.take()
        for old, new in zip(before.layers, tails.layers, strict=True):
            new[:, slot, :, :filled] = old[:, self.slot, :, :filled]
        before.give_back(self.slot)
        self.tails, self.slot = tails, slot

    def truncate(self, stop: int) -> None:
        """Forget positions from `stop` on."""
        self.length = min(self.length, stop)

    def mark(self) -> None:
        """Rows can be continued anywhere."""

    def snapshot(self) -> KVState:
        """The state of all positions: the prefix as it is, a copy of the rows after it."""
        own = self.tails.copy_of(self.slot, self.length - self.start)
        layers = []
        for first, (keys, values) in zip(self.firsts, own, strict=True):
            skip = max(min(first, self.length) - self.start, 0)
            layers.append(LayerState(keys[:, skip:], values[:, skip:], self.start + skip))
        rough = self.approximate_from
        state = KVState(
            layers=tuple(layers),
            start=self.start,
            stop=self.length,
            identity=self.identity,
            approximate_from=None if rough is None or rough >= self.length else rough,
            hops=0 if rough is None or rough >= self.length else self.hops,
        )
        return state if self.prefix is None else KVState.joined((self.prefix, state))

    def close(self) -> None:
        """Let its rows go; a second call does nothing."""
        if self.slot >= 0:
            self.tails.give_back(self.slot)
            self.slot, self.prefix = -1, None

    def check_window(self, position: int) -> None:
        """Refuse to compute a token that must see rows which a trimmed state lacks."""
        for number, layer in enumerate(self.geometry.layers):
            oldest = 0 if layer.window is None else max(position - layer.window + 1, 0)
            first = self.firsts[number]
            if first == self.start:  # none of its own rows is lacking
                held = self.prefix if oldest < self.start else None
                first = 0 if held is None else held.layers[number].first
            if first > oldest:
                raise StateError(
                    f"layer {number} holds nothing before position {first}",
                    expected=f"rows from position {oldest} on, which the token at {position} sees",
                    fix="do not trim a state that a splice or a repair will read",
                )


def open_sequence(
    states: Listed[KVState],
    positions: Listed[int],
    *,
    spare: int,
    identity: ModelIdentity,
    geometry: CacheGeometry,
    dtype: torch.dtype,
    device: torch.device,
    pool: TailPool,
) -> Sequence:
    """A sequence with states in place, and room for `positions` and `spare` more.

    The states that lead without a gap, up to the first position to compute, stay where they are.
    What stands after it is copied, and so are a few rows at the prefix's end. All is copied where
    layers that see equally far lie in memory otherwise than each other.

    Raises:
        StateError: A gap, or rows missing that a new token must see.
        GeometryMismatch, IdentityMismatch: A state that is not this model's.
    """
    for piece in states:
        identity.require(piece.identity, f"a state of positions {piece.start} to {piece.stop}")
        piece.check(geometry, dtype)
    end = max((piece.stop for piece in states), default=0)
    stop = max(end, positions[-1] + 1 if positions else 0)
    gap = first_gap(states, positions, stop)
    if gap is not None:
        raise StateError(
            f"nothing covers position {gap}",
            expected=f"states and new tokens that cover positions 0 to {stop} together",
        )
    prefix, runs = _shared(states, positions[0] if positions else stop, geometry)
    start = 0 if prefix is None else prefix.stop
    tails = pool.of(stop - start + spare, dtype, device)
    sequence = Sequence(
        identity=identity,
        geometry=geometry,
        prefix=prefix,
        start=start,
        runs=runs,
        pool=pool,
        tails=tails,
        slot=tails.take(),
        length=start,
        firsts=[start] * len(geometry.layers),
        approximate_from=first_approximate(states, positions),
        hops=max((piece.hops for piece in states), default=0),
    )
    try:
        for piece in states:
            if piece.stop > start:
                sequence.place(piece.slice(max(piece.start, start), piece.stop))
        if positions:
            sequence.check_window(positions[0])
    except BaseException:
        sequence.close()
        raise
    return sequence


def _shared(
    states: Listed[KVState], stop: int, geometry: CacheGeometry
) -> tuple[KVState | None, dict[int | None, tuple[Run, ...]]]:
    """What leads up to `stop` and is read where it lies, and how it lies there."""
    prefix = _leading(states, stop)
    runs = None if prefix is None else runs_of(prefix, geometry)
    return (None, {}) if runs is None else (prefix, runs)


def _leading(states: Listed[KVState], stop: int) -> KVState | None:
    """What leads without a gap up to `stop`, without the last rows that are rather copied."""
    run, end = [], 0
    for state in sorted(states, key=lambda state: state.start):
        if state.start != end or end >= stop:
            break
        run.append(state.slice(state.start, min(state.stop, stop)))
        end = run[-1].stop
    if not run:
        return None
    joined = run[0] if len(run) == 1 else KVState.joined(run)
    kept = _worth_sharing(joined)
    return joined.slice(0, kept) if kept else None


def _worth_sharing(state: KVState) -> int:
    """Where the part of a prefix ends that is read where it lies."""
    whole = max(state.layers, key=lambda layer: layer.rows)
    ends, end = [], whole.first
    for keys, _ in whole.chunks:
        end += keys.shape[1]
        ends.append(end)
    while ends and state.stop - (ends[-2] if len(ends) > 1 else 0) <= FEW_ROWS:
        ends.pop()
    return ends[:MOST_CHUNKS][-1] if ends else 0
