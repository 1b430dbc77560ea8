"""The state itself, between agents on one model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from unspoken.channels.base import (
    Arrival,
    Carry,
    CarryReport,
    Channel,
    Mode,
    Piece,
    Role,
    Share,
    Span,
)
from unspoken.channels.errors import GeometryMismatch, InputError, StateError
from unspoken.channels.finetunes.carry import carry_across
from unspoken.channels.finetunes.recompute import (
    LayerRanges,
    check_layer_ranges,
    entry_layers,
    require_one_base,
)
from unspoken.channels.kv.copies import rows_at
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import common_prefix
from unspoken.channels.model import CausalModel, layer_devices
from unspoken.channels.pace import affordable_tokens
from unspoken.channels.repair import deviating_positions, early_layers

SINK = 4
"""First tokens of a spliced message that are recomputed where nothing is said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SameModelCacheChannel(Channel):
    """Hand over keys and values between agents whose models have the same weights.

    Where the same tokens stand before the message at both ends, its state continues the receiver's
    context exactly. Elsewhere it is spliced. Keys are shifted to the receiver's positions. The
    first `sink` message tokens are recomputed: all that followed in the sharer's context attended
    to them most (EPIC, arXiv 2410.15332).

    Attributes:
        share: What the sharer publishes; None stands for its output, or its prompt where it
            generates nothing.
        as_: Role of the message's turn in the receiver's template.
        sink: Tokens of a spliced message to recompute; 0 for none, a number past its length for
            all (then exact).
        deviation: Share of the spliced tokens to recompute besides, 0 to 1: those whose values
            on the second layer deviate most from what the receiver computes there (CacheBlend,
            arXiv 2405.16444). Finding them runs two layers over the context up to the message's
            end.
        budget: Milliseconds of the receiver's time to spend on a spliced message, in place of the
            other two: on as many of its first tokens as it computes in that time, by its pace on
            this machine. Nothing helps more per millisecond. 0 recomputes nothing; enough for the
            whole message is exact.
        layer_ranges: Layers to recompute where the message was made by other weights of the
            receiver's base, as (first, last + 1) pairs. An empty tuple
            recomputes no layer. None refuses other weights.
        evidence: What speaks for these ranges, for the report.
        prefix_only: Whether these ranges serve only a message that is not moved.
    """

    name: ClassVar[str] = "same_model_cache"
    carries_state: ClassVar[bool] = True

    share: Share | None = None
    as_: Role = "user"
    sink: int = SINK
    deviation: float = 0.0
    budget: float | None = None
    layer_ranges: LayerRanges | None = None
    evidence: str = ""
    prefix_only: bool = False

    def __post_init__(self) -> None:
        if self.sink < 0:
            raise InputError(f"sink is {self.sink}", expected="0 or more tokens to recompute")
        if not 0 <= self.deviation <= 1:
            raise InputError(
                f"deviation is {self.deviation}",
                expected="the share of a spliced message's tokens to recompute, 0 to 1",
            )
        if self.budget is None:
            return
        if not self.budget >= 0:
            raise InputError(f"budget is {self.budget}", expected="0 or more milliseconds")
        if self.deviation or self.sink != SINK:
            raise InputError(
                f"a budget stands beside {'deviation' if self.deviation else 'sink'}",
                expected="a budget, or sink and deviation",
                fix=f"write SameModelCacheChannel(budget={self.budget:g})",
            )

    @property
    def captures(self) -> tuple[int, ...]:
        """The first layers of the ranges, whose inputs the receiver needs."""
        return entry_layers(self.layer_ranges or ())

    def check(self, sharer: CausalModel, receiver: CausalModel) -> None:
        """Both ends must have the same model and dtype; with ranges, the weights may differ.

        Raises:
            IdentityMismatch, GeometryMismatch: naming what differs.
        """
        if self.layer_ranges is None:
            receiver.identity.require(sharer.identity, "the sharer's cache")
        else:
            require_one_base(receiver.identity, sharer.identity, "the sharer's cache")
            receiver.geometry.require_rows("a cache across fine-tunes")
            check_layer_ranges(self.layer_ranges, len(receiver.geometry.layers))
        if sharer.dtype != receiver.dtype:
            raise GeometryMismatch(
                f"the sharer computes in {sharer.dtype}, the receiver in {receiver.dtype}",
                expected="one dtype at both ends",
                fix="load both agents' models with one dtype, or use a text channel",
            )

    def carry(self, arrival: Arrival, receiver: CausalModel) -> Carry:
        """Continue where the prefixes are equal, splice the rest.

        Raises:
            IdentityMismatch, GeometryMismatch: The state is not the receiver's own model's.
            StateError: The message has no state, or its tokens are not in the receiver's context.
        """
        message, state = arrival.message, arrival.message.require_state()
        if not arrival.spans:
            raise StateError(
                f"the receiver has the words of {message.sharer!r}, but not its tokens",
                expected="the message's own token ids in the receiver's context",
                fix="print the message whole and unfiltered in the prompt, or use a text channel",
            )
        if self.layer_ranges is not None and state.identity != receiver.identity:
            return carry_across(
                arrival,
                receiver,
                layer_ranges=check_layer_ranges(self.layer_ranges, len(receiver.geometry.layers)),
                sink=self.sink,
                deviation=self.deviation,
                evidence=self.evidence,
                prefix_only=self.prefix_only,
            )
        receiver.identity.require(state.identity, f"the cache of {message.sharer!r}")
        state.check(receiver.geometry, receiver.dtype)
        # Hidden states are for readers with other weights.
        state = rows_at(state, layer_devices(receiver))
        shared = common_prefix(arrival.context, message.context)
        if receiver.geometry.recurrent:
            return self._from_snapshot(arrival, state, shared, receiver)
        prefix = Piece(state.slice(0, shared)) if shared and state.start == 0 else None
        spans = tuple(_beyond(span, shared) for span in arrival.spans if span.stop > shared)
        _require_rows(state, shared, spans, receiver)
        spliced = tuple(self._place(state, span, receiver) for span in spans)
        sink = self.sink if self.budget is None else affordable_tokens(receiver, self.budget)
        repair = _first_positions(spans, sink)
        layer_tokens = 0
        if self.deviation and spliced:
            deviating = deviating_positions(receiver, arrival.context, spliced, self.deviation)
            repair = tuple(sorted({*repair, *deviating}))
            layer_tokens = early_layers(receiver) * spliced[-1].stop
        report = self._report(arrival, state, shared, spans, len(repair))
        report = replace(report, layer_tokens=layer_tokens)
        return Carry(report, prefix=prefix, pieces=tuple(map(Piece, spliced)), repair=repair)

    def _from_snapshot(
        self, arrival: Arrival, state: KVState, shared: int, receiver: CausalModel
    ) -> Carry:
        """Continue where the last snapshot stands; recurrent layers go on nowhere else.

        Raises:
            StateError: No snapshot stands within the message or after it.
        """
        stop = state.usable(receiver.geometry, shared)
        again = sum(position >= stop for position in arrival.positions)
        if again == arrival.tokens:
            raise StateError(
                "recurrent layers go on from a snapshot alone, and none stands in the message "
                f"within the {shared} tokens that both contexts begin with",
                expected="the same tokens before the message at both ends",
                fix="let the message come first in the receiver's context, or use a text channel",
            )
        reason = "continuation: the same tokens stand before the message at both ends"
        if again:
            reason += (
                f"; its last {again} tokens are read again, since recurrent layers go on from a "
                f"snapshot alone, and the last one stands after token {stop}"
            )
        prefix, rough = state.slice(0, stop), state.approximate_from
        report = CarryReport(
            channel=self.name,
            mode="continuation",
            exact=rough is None or rough >= stop,
            reason=reason,
            tokens=arrival.tokens,
            reused=arrival.tokens - again,
            bytes=prefix.cache_bytes,
        )
        return Carry(report, prefix=Piece(prefix))

    def _place(self, state: KVState, span: Span, receiver: CausalModel) -> KVState:
        source = state.slice(span.source, span.source + span.length)
        source = replace(source, approximate_from=span.source)
        return source.shift(span.at - span.source, receiver.geometry, receiver.rotary)

    def _report(
        self, arrival: Arrival, state: KVState, shared: int, spans: Sequence[Span], repaired: int
    ) -> CarryReport:
        beyond = sum(span.length for span in spans)
        rough = state.approximate_from
        exact = beyond == repaired and (rough is None or rough >= shared)
        mode: Mode = "splice" if beyond else "continuation"
        if beyond:
            moved = spans[0].at - spans[0].source
            reason = (
                f"splice: other tokens stand before the message; keys moved by {moved:+d}, "
                f"{repaired} repaired"
            )
            reason += "" if self.budget is None else f" for {self.budget:g} ms"
        else:
            reason = "continuation: the same tokens stand before the message at both ends"
            reason += "" if exact else ", of a state that is approximate itself"
        carried = [state.slice(span.source, span.source + span.length) for span in spans]
        per_token = state.cache_bytes // max(len(state), 1)
        return CarryReport(
            channel=self.name,
            mode=mode,
            exact=exact,
            reason=reason,
            tokens=arrival.tokens,
            reused=arrival.tokens - repaired,
            repaired=repaired,
            bytes=per_token * (arrival.tokens - beyond)
            + sum(piece.cache_bytes for piece in carried),
        )


def _require_rows(
    state: KVState, shared: int, spans: Sequence[Span], receiver: CausalModel
) -> None:
    """Refuse a trimmed state where more is wanted of it than to go on at its end.

    Raises:
        StateError: Rows that a continuation or a splice needs were trimmed.
    """
    begin = state.slice(state.start, max(shared, state.start))
    lacking = any(not state.slice(s.source, s.source + s.length).whole for s in spans)
    if lacking or not begin.continues(receiver.geometry):
        raise StateError(
            "the cache was kept for a continuation, and the message stands after other tokens",
            expected="the same tokens before the message at both ends, as the plan found",
            fix="use channel: text on this edge, or give both agents the same opening",
        )


def _beyond(span: Span, prefix: int) -> Span:
    """The part of a span that lies at or after position `prefix`."""
    skip = max(prefix - span.at, 0)
    return Span(span.at + skip, span.source + skip, span.length - skip)


def _first_positions(spans: tuple[Span, ...], count: int) -> tuple[int, ...]:
    """The first `count` receiver positions of the spans."""
    positions = [position for span in spans for position in range(span.at, span.stop)]
    return tuple(positions[:count])
