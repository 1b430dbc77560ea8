"""A message whose state other weights of the receiver's base have made, brought into the receiver's context."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from unspoken.channels.base import Arrival, Carry, CarryReport, CausalModel, Span
from unspoken.channels.errors import StateError
from unspoken.channels.message import common_prefix
from unspoken.channels.recompute import Groups, entries, named, recompute_layers
from unspoken.channels.repair import EARLY, deviating_positions
from unspoken.channels.state import KVState

__all__ = ["carry_across"]


@dataclass(frozen=True, slots=True)
class _Run:
    """Tokens of the sharer's state in their place: the receiver computes what lies before `at` itself."""

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
    groups: Groups,
    sink: int,
    deviation: float,
    grounds: str,
) -> Carry:
    """Some layers of the message anew in the receiver, the others as the sharer made them.

    Tokens that stand before the message at both ends travel with it. Where other tokens do, the receiver computes those
    itself, and the message's first `sink` tokens with them; keys of the rest are shifted.

    Args:
        arrival: The message in its place.
        receiver: The receiving model.
        state: The sharer's state, of other weights of the receiver's base.
        groups: Layers to compute anew.
        sink: Tokens at the start of what is shifted that the receiver computes itself.
        deviation: Share of the tokens to compute anew in all layers, those whose values deviate most.
        grounds: What speaks for these layers, for the report.

    Raises:
        IdentityMismatch, GeometryMismatch, StateError: As `recompute_layers`.
    """
    ids = arrival.context
    before, reach = list(arrival.before), max((one.stop for one in arrival.before), default=0)
    computed: list[KVState] = []
    made: list[KVState] = []
    bare = state.hidden_first if entries(groups) else state.start
    for run in _runs(arrival, state, reach, sink, bare):
        if run.at > reach:
            own = _computed(receiver, ids[reach : run.at], before).slice(reach, run.at)
            computed.append(own)
            before.append(own)
        source = state.slice(run.source, run.source + run.tokens)
        moved = source.shift(run.at - run.source, receiver.geometry, receiver.rotary)
        piece = recompute_layers(receiver, moved, ids[run.at : run.stop], groups, before)
        made.append(piece)
        before.append(piece)
        reach = run.stop
    repair: tuple[int, ...] = ()
    looked = 0
    if deviation and made:
        depth = min(EARLY, len(receiver.geometry.layers))
        repair = deviating_positions(receiver, ids, made, deviation, depth)
        looked = depth * made[-1].stop
    report = _report(arrival, receiver, state, groups, grounds, computed, made)
    report = replace(report, layer_tokens=report.layer_tokens + looked)
    return Carry(
        None, tuple(made), repair, report, computed=tuple(computed), recomputed=bool(groups)
    )


def _runs(arrival: Arrival, state: KVState, reach: int, sink: int, bare: int) -> Iterator[_Run]:
    """What to take of the sharer's state, ascending: the tokens that stand first at both ends, then the spans.

    Args:
        arrival: The message in its place.
        state: The sharer's state.
        reach: Where the receiver has states up to.
        sink: Tokens at the start of a span to leave out.
        bare: Position of the sharer's before which nothing can be taken.

    Raises:
        StateError: Nothing of the message can be taken.
    """
    last = max((span.at + span.length for span in arrival.spans), default=0)
    shared = min(common_prefix(arrival.context, arrival.message.context), last)
    spans = [Span(0, 0, shared)] if shared and state.start == 0 else []
    spans += arrival.spans
    at, taken = reach, 0
    for span in spans:
        stop = span.at + span.length
        skip = 0 if span.at == span.source == 0 else min(sink, span.length)
        skip = max(skip if at <= span.at else at - span.at, bare - span.source)
        if span.at + skip < stop:
            taken += stop - span.at - skip
            yield _Run(span.at + skip, span.source + skip, stop)
        at = max(at, stop)
    if not taken and bare > state.start and reach < last:
        raise StateError(
            f"the sharer's hidden states begin at position {bare}, after the message",
            expected="hidden states of the message's own tokens",
            fix="share what the sharer computed itself in this turn, such as its prompt or its output",
        )


def _computed(receiver: CausalModel, ids: Sequence[int], before: Sequence[KVState]) -> KVState:
    """The receiver's state of all up to the last of `ids`."""
    return receiver.prefill(torch.tensor(tuple(ids), device=receiver.device), before).state


def _report(
    arrival: Arrival,
    receiver: CausalModel,
    state: KVState,
    groups: Groups,
    grounds: str,
    computed: Sequence[KVState],
    made: Sequence[KVState],
) -> CarryReport:
    layers = len(receiver.geometry.layers)
    count = sum(last - first for first, last in groups)
    tokens = sum(map(len, made))
    kept = (layers - count) * tokens
    hidden = sum(state.hidden[layer].shape[1] for layer in entries(groups)) * state.dtype.itemsize
    moved = [layer for number, layer in enumerate(state.layers) if not _within(number, groups)]
    per_token = sum(layer.nbytes // max(layer.rows, 1) for layer in moved) + hidden
    of = f"layers {named(groups)} of {layers}" if groups else "no layer"
    reason = f"recompute: other weights of one base; {of} computed anew over {tokens} tokens"
    return CarryReport(
        "same_model_cache",
        exact=not kept and all(piece.exact for piece in (*arrival.before, *made)),
        reason=f"{reason} ({grounds})" if grounds else reason,
        tokens=arrival.tokens,
        reused=0 if groups else tokens,
        repaired=arrival.tokens if groups else 0,
        bytes=per_token * tokens,
        layer_tokens=count * tokens + layers * sum(map(len, computed)),
        recomputed_layers=count,
    )


def _within(layer: int, groups: Groups) -> bool:
    return any(first <= layer < last for first, last in groups)
