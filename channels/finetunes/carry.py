"""A message whose state other weights of the receiver's base have made, brought into the receiver's
context.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from unspoken.channels.base import Arrival, Carry, CarryReport, Origin, Piece, Span
from unspoken.channels.errors import StateError
from unspoken.channels.finetunes.recompute import LayerRanges, entry_layers, named, recompute_layers
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import common_prefix
from unspoken.channels.model import CausalModel
from unspoken.channels.repair import EARLY, deviating_positions

__all__ = ["carry_across"]


@dataclass(frozen=True, slots=True)
class _Run:
    """Tokens of the sharer's state in their place: the receiver computes what lies before `at`
    itself.
    """

    at: int
    source: int
    stop: int

    @property
    def tokens(self) -> int:
        return self.stop - self.at


def carry_across(
    arrival: Arrival,
    receiver: CausalModel,
    state: KVState,
    layer_ranges: LayerRanges,
    sink: int,
    deviation: float,
    evidence: str,
    prefix_only: bool = False,
) -> Carry:
    """Some layers of the message anew in the receiver, the others as the sharer made them.

    Tokens that stand before the message at both ends travel with it. Where other tokens do, the
    receiver computes those itself, and the message's first `sink` tokens with them; keys of the
    rest are shifted.

    Args:
        arrival: The message in its place.
        receiver: The receiving model.
        state: The sharer's state, of other weights of the receiver's base.
        layer_ranges: Layers to recompute.
        sink: Tokens at the start of what is shifted that the receiver computes itself.
        deviation: Share of the tokens to recompute in all layers, those whose values deviate
            most.
        evidence: What speaks for these layers, for the report.
        prefix_only: Whether these layers are for messages alone that stand where they stood at
            their sharer.

    Raises:
        IdentityMismatch, GeometryMismatch, StateError: As `recompute_layers`, or a message moved
            that must not be.
    """
    ids = arrival.context
    before = list(arrival.before)
    computed: list[KVState] = []
    made: list[KVState] = []
    for run in _runs(arrival, state, sink, bool(entry_layers(layer_ranges))):
        if prefix_only and run.at != run.source:
            raise StateError(
                "the message stands after other tokens than at its sharer",
                expected="the same tokens before it at both ends, where these layers were found to "
                "be enough",
                fix="plan with a profile that covers other places, or raise max_kl",
            )
        computed += _computed(receiver, ids, run.at, before)
        before = sorted((*arrival.before, *computed, *made), key=lambda piece: piece.start)
        source = state.slice(run.source, run.source + run.tokens)
        moved = source.shift(run.at - run.source, receiver.geometry, receiver.rotary)
        behind = [piece for piece in before if piece.start < run.at]
        made.append(recompute_layers(receiver, moved, ids[run.at : run.stop], layer_ranges, behind))
        before.append(made[-1])
    report = _report(arrival, receiver, state, layer_ranges, evidence, computed, made)
    repair: tuple[int, ...] = ()
    depth = min(EARLY, len(receiver.geometry.layers))
    if deviation and made and not _within(depth - 1, layer_ranges):
        repair = deviating_positions(receiver, ids, made, deviation, depth)
        report = replace(report, layer_tokens=report.layer_tokens + depth * made[-1].stop)
    elif deviation and made:
        why = f"{report.reason}; layer {depth - 1} is recomputed, so it shows no deviation"
        report = replace(report, reason=why)
    origin: Origin = "recomputed" if layer_ranges else "reused"
    pieces = [Piece(piece, "computed") for piece in computed]
    pieces += [Piece(piece, origin) for piece in made]
    return Carry(report, pieces=tuple(pieces), repair=repair)


def _runs(arrival: Arrival, state: KVState, sink: int, enters: bool) -> list[_Run]:
    """What to take of the sharer's state, ascending: the tokens that stand first at both ends, then
    the spans.

    What is in place already, a span's first `sink` tokens, and tokens whose hidden states are
    wanted and missing stay out; the receiver computes the latter two.

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
    last = max((span.at + span.length for span in arrival.spans), default=0)
    shared = min(common_prefix(arrival.context, arrival.message.context), last)
    spans = [Span(0, 0, shared)] if shared and state.start == 0 else []
    runs, lost = [], 0
    for span in (*spans, *arrival.spans):
        fresh = span.at > 0 and not taken[span.at]
        begin = span.at + (min(sink, span.length) if fresh else 0)
        stop = span.at + span.length
        start = min(max(begin, span.at + bare - span.source), stop)
        lost += sum(not there for there in taken[begin:start])
        for at, end in _free(taken, start, stop):
            runs.append(_Run(at, at - span.at + span.source, end))
            taken[at:end] = b"\1" * (end - at)
    if lost and not runs:
        raise StateError(
            f"the sharer's hidden states begin at position {bare}, after the message",
            expected="hidden states of the message's own tokens",
            fix="share what the sharer computed itself in this turn, such as its prompt or its "
            "output",
        )
    return sorted(runs, key=lambda run: run.at)


def _mask(tokens: int, states: Sequence[KVState]) -> bytearray:
    """A byte per position, 1 where a state stands."""
    taken = bytearray(tokens)
    for state in states:
        stop = min(state.stop, tokens)
        taken[state.start : stop] = b"\1" * (stop - state.start)
    return taken


def _free(taken: bytearray, start: int, stop: int) -> list[tuple[int, int]]:
    """Stretches of positions where nothing stands."""
    found = []
    at = taken.find(b"\0", start, stop)
    while at >= 0:
        end = taken.find(b"\1", at, stop)
        end = stop if end < 0 else end
        found.append((at, end))
        at = taken.find(b"\0", end, stop)
    return found


def _computed(
    receiver: CausalModel, ids: Sequence[int], stop: int, before: Sequence[KVState]
) -> list[KVState]:
    """The receiver's states of all positions below `stop` where nothing stands."""
    gaps = _free(_mask(stop, before), 0, stop)
    if not gaps:
        return []
    places = [at for first, end in gaps for at in range(first, end)]
    behind = [piece for piece in before if piece.start < stop]
    state = receiver.prefill(
        torch.tensor([ids[at] for at in places], device=receiver.device),
        behind,
        torch.tensor(places, device=receiver.device),
    ).state
    return [state.slice(first, end) for first, end in gaps]


def _report(
    arrival: Arrival,
    receiver: CausalModel,
    state: KVState,
    layer_ranges: LayerRanges,
    evidence: str,
    computed: Sequence[KVState],
    made: Sequence[KVState],
) -> CarryReport:
    layers = len(receiver.geometry.layers)
    tokens = sum(map(len, made))
    report = CarryReport(
        channel="same_model_cache",
        mode="recompute",
        exact=True,
        reason="nothing of the cache is taken: what the message brings is in place or computed",
        tokens=arrival.tokens,
        layer_tokens=layers * sum(map(len, computed)),
    )
    if not made:
        return report
    count = sum(last - first for first, last in layer_ranges)
    moved = [
        layer for number, layer in enumerate(state.layers) if not _within(number, layer_ranges)
    ]
    per_token = sum(layer.nbytes // max(layer.rows, 1) for layer in moved)
    per_token += sum(
        state.hidden[at].shape[1] * state.hidden[at].itemsize for at in entry_layers(layer_ranges)
    )
    of = f"layers {named(layer_ranges)} of {layers}" if layer_ranges else "no layer"
    reason = f"recompute: other weights of one base; {of} recomputed over {tokens} tokens"
    rough = state.approximate_from is not None and count < layers
    why = "of a state that is approximate itself, so no bound is known" if rough else evidence
    return replace(
        report,
        exact=count == layers and all(piece.exact for piece in (*arrival.before, *made)),
        reason=f"{reason} ({why})" if why else reason,
        reused=0 if layer_ranges else tokens,
        repaired=tokens if layer_ranges else 0,
        bytes=per_token * tokens,
        layer_tokens=report.layer_tokens + count * tokens,
        recomputed_layers=count,
    )


def _within(layer: int, layer_ranges: LayerRanges) -> bool:
    return any(first <= layer < last for first, last in layer_ranges)
