"""A message whose state a fine-tune of the receiver's base has made, in the receiver's context.

Of most layers the sharer's rows are taken, and the receiver recomputes some ranges of layers from
the sharer's hidden states. Two things must hold for that. The rows must stand at the receiver's
positions: the message is cut into runs, stretches of tokens that move by one distance, and the keys
of each run are shifted. And what stands before a run must be the receiver's own: where no state
covers it, as its prompt, it is computed first, and the run's ranges over it. The first tokens of a
span that moved are computed too, since attention rests on them most.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from unspoken.channels.base import Arrival, Carry, CarryReport, Origin, Piece, Span
from unspoken.channels.errors import StateError
from unspoken.channels.finetunes.recompute import (
    LayerRanges,
    entry_layers,
    layers_of,
    named,
    recompute_layers,
    within,
)
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import common_prefix
from unspoken.channels.model import CausalModel
from unspoken.channels.repair import deviating_positions, early_layers


@dataclass(frozen=True, slots=True)
class _Run:
    """Tokens of the sharer's state in their place.

    Attributes:
        start, stop: Their positions in the receiver's context.
        moved: How far they are moved from their positions at the sharer.
    """

    start: int
    stop: int
    moved: int


def carry_across(
    arrival: Arrival,
    receiver: CausalModel,
    *,
    layer_ranges: LayerRanges,
    sink: int = 0,
    deviation: float = 0.0,
    evidence: str = "",
    prefix_only: bool = False,
) -> Carry:
    """Some layers of the message recomputed by the receiver, the others as the sharer made them.

    Args:
        arrival: The message in its place, with the state of other weights of the receiver's base.
        receiver: The receiving model.
        layer_ranges: Layers to recompute.
        sink, deviation, evidence, prefix_only: As in `SameModelCacheChannel`.

    Raises:
        IdentityMismatch, GeometryMismatch, StateError: As `recompute_layers`, or a message moved
            that must not be.
    """
    ids, state, before = arrival.context, arrival.message.require_state(), list(arrival.before)
    computed: list[KVState] = []
    taken: list[KVState] = []
    for run in _runs(arrival, state, sink, bool(entry_layers(layer_ranges))):
        if prefix_only:
            _require_unmoved(run)
        computed += _computed(receiver, ids, run.start, before)
        before = sorted((*arrival.before, *computed, *taken), key=lambda piece: piece.start)
        rows = state.slice(run.start - run.moved, run.stop - run.moved)
        rows = rows.shift(run.moved, receiver.geometry, receiver.rotary)
        behind = [piece for piece in before if piece.start < run.start]
        words = ids[run.start : run.stop]
        taken.append(recompute_layers(receiver, rows, words, layer_ranges, behind))
        before.append(taken[-1])
    report = _report(arrival, receiver, layer_ranges, evidence, computed=computed, taken=taken)
    repair: tuple[int, ...] = ()
    if deviation and taken:
        depth = early_layers(receiver)
        if within(depth - 1, layer_ranges):
            why = f"{report.reason}; layer {depth - 1} is recomputed, so it shows no deviation"
            report = replace(report, reason=why)
        else:
            repair = deviating_positions(receiver, ids, taken, deviation)
            report = replace(report, layer_tokens=report.layer_tokens + depth * taken[-1].stop)
    origin: Origin = "recomputed" if layer_ranges else "reused"
    pieces = [Piece(part, "computed") for part in computed]
    pieces += [Piece(part, origin) for part in taken]
    return Carry(report, pieces=tuple(pieces), repair=repair)


def _require_unmoved(run: _Run) -> None:
    if run.moved:
        raise StateError(
            "the message stands after other tokens than at its sharer",
            expected="the same tokens before it at both ends, where these layers were found to "
            "be enough",
            fix="plan with a profile that covers other places, or raise max_kl",
        )


def _runs(arrival: Arrival, state: KVState, sink: int, enters: bool) -> list[_Run]:
    """What to take of the sharer's state, ascending: the common beginning, then the spans.

    Left out are tokens that are in place already, a span's first `sink` tokens, and tokens whose
    hidden states are wanted and missing. The receiver computes the latter two.

    Args:
        arrival: The message in its place.
        state: The sharer's state.
        sink: Tokens at the start of a shifted span to leave out.
        enters: Whether hidden states are wanted.

    Raises:
        StateError: Hidden states are wanted, and the message has none.
    """
    bare = state.hidden_first if enters else state.start
    taken = _mask(len(arrival.context), arrival.before)
    last = max((span.stop for span in arrival.spans), default=0)
    shared = min(common_prefix(arrival.context, arrival.message.context), last)
    spans = [Span(0, 0, shared)] if shared and state.start == 0 else []
    runs, lost = [], 0
    for span in (*spans, *arrival.spans):
        fresh = span.at > 0 and not taken[span.at]
        begin = span.at + (min(sink, span.length) if fresh else 0)
        stop, moved = span.stop, span.at - span.source
        first = min(max(begin, bare + moved), stop)
        lost += taken.count(b"\0", begin, first)
        for start, end in _free(taken, first, stop):
            runs.append(_Run(start, end, moved))
            taken[start:end] = b"\1" * (end - start)
    if lost and not runs:
        raise StateError(
            f"the sharer's hidden states begin at position {bare}, after the message",
            expected="hidden states of the message's own tokens",
            fix="share what the sharer computed itself in this turn, such as its prompt or its "
            "output",
        )
    return sorted(runs, key=lambda run: run.start)


def _mask(tokens: int, states: Sequence[KVState]) -> bytearray:
    """A byte per position, 1 where a state stands."""
    taken = bytearray(tokens)
    for state in states:
        stop = min(state.stop, tokens)
        taken[state.start : stop] = b"\1" * (stop - state.start)
    return taken


def _free(taken: bytearray, start: int, stop: int) -> list[tuple[int, int]]:
    """Stretches of positions where nothing stands."""
    return [match.span() for match in re.compile(b"\0+").finditer(taken, start, stop)]


def _computed(
    receiver: CausalModel, ids: Sequence[int], stop: int, before: Sequence[KVState]
) -> list[KVState]:
    """The receiver's states of all positions below `stop` where nothing stands."""
    gaps = _free(_mask(stop, before), 0, stop)
    if not gaps:
        return []
    places = [position for first, end in gaps for position in range(first, end)]
    behind = [piece for piece in before if piece.start < stop]
    state = receiver.prefill(
        torch.tensor([ids[position] for position in places], device=receiver.device),
        behind,
        torch.tensor(places, device=receiver.device),
    ).state
    return [state.slice(first, end) for first, end in gaps]


def _report(
    arrival: Arrival,
    receiver: CausalModel,
    layer_ranges: LayerRanges,
    evidence: str,
    *,
    computed: Sequence[KVState],
    taken: Sequence[KVState],
) -> CarryReport:
    state = arrival.message.require_state()
    layers, recomputed = len(receiver.geometry.layers), layers_of(layer_ranges)
    tokens = sum(map(len, taken))
    report = CarryReport(
        channel="same_model_cache",
        mode="recompute",
        exact=True,
        reason="no row of the cache is used: the receiver has all of them already",
        tokens=arrival.tokens,
        layer_tokens=layers * sum(map(len, computed)),
    )
    if not taken:
        return report
    per_token = sum(
        layer.nbytes // max(layer.rows, 1)
        for number, layer in enumerate(state.layers)
        if not within(number, layer_ranges)
    )
    entries = (state.hidden[layer] for layer in entry_layers(layer_ranges))
    per_token += sum(hidden.shape[1] * hidden.itemsize for hidden in entries)
    of = f"layers {named(layer_ranges)} of {layers}" if layer_ranges else "no layer"
    reason = f"recompute: other weights of one base; {of} recomputed over {tokens} tokens"
    rough = state.approximate_from is not None and recomputed < layers
    why = "of a state that is approximate itself, so no bound is known" if rough else evidence
    return replace(
        report,
        exact=recomputed == layers and all(piece.exact for piece in (*arrival.before, *taken)),
        reason=f"{reason} ({why})" if why else reason,
        reused=0 if layer_ranges else tokens,
        repaired=tokens if layer_ranges else 0,
        bytes=per_token * tokens,
        layer_tokens=report.layer_tokens + recomputed * tokens,
        recomputed_layers=recomputed,
    )
