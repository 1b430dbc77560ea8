"""States in place for a turn's context: what messages and an agent's own past bring, and what is
left to compute.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from unspoken.agents.models.hf_cache import first_approximate
from unspoken.agents.models.model import LocalModel
from unspoken.channels.base import Arrival, Carry, CarryReport, Channel
from unspoken.channels.errors import ChannelError, ModelSupportError, RunError, StateError
from unspoken.channels.kv.compressed import CompressedState
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import common_prefix
from unspoken.channels.text import TextChannel

__all__ = ["Assembly", "Inbound", "assemble"]


class Places:
    """Positions of a context, each served by the state that was put there first.

    Args:
        stop: Number of positions.

    Attributes:
        states: Slices that do not overlap, in the order in which they were put.
    """

    def __init__(self, stop: int) -> None:
        self._taken = bytearray(stop)
        self.states: list[KVState] = []

    def put(self, state: KVState) -> list[int]:
        """Put a state where nothing stands yet; the positions that it serves."""
        served: list[int] = []
        stop = min(state.stop, len(self._taken))
        at = self._taken.find(b"\0", state.start, stop)
        while at >= 0:
            end = self._taken.find(b"\1", at, stop)
            end = stop if end < 0 else end
            self.states.append(state.slice(at, end))
            self._taken[at:end] = b"\1" * (end - at)
            served += range(at, end)
            at = self._taken.find(b"\0", end, stop)
        return served


@dataclass(frozen=True, slots=True)
class Inbound:
    """A message on its way into a turn.

    Attributes:
        edge: Number of the edge.
        name: The edge, as ``sharer -> receiver``.
        channel: What carries it.
        arrival: The message in its place.
        fallback: Whether a channel that fails gives way to text.
        compressed: The message's state in fewer bytes, where the edge keeps it so.
    """

    edge: int
    name: str
    channel: Channel
    arrival: Arrival
    fallback: bool = True
    compressed: CompressedState | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Assembly:
    """States in place for a context, and what is left to compute.

    Attributes:
        states: States at their positions.
        missing: Positions to compute, ascending.
        repaired: Those of them that have a state all the same.
        projected: Positions whose state a bridge made, not computed anew.
        fused: Positions in place that a channel computed in this model, a bridge's enriched rows
            among them.
        recomputed: Positions in place of which a channel computed some layers anew.
        layer_tokens: Layers times tokens that bridges ran in this model.
        carries: Per delivery, its edge, its report and the seconds its carry took.
    """

    states: tuple[KVState, ...]
    missing: tuple[int, ...]
    repaired: frozenset[int]
    projected: frozenset[int]
    fused: frozenset[int]
    recomputed: frozenset[int]
    layer_tokens: int
    carries: tuple[tuple[int, CarryReport, float], ...]


def assemble(
    model: LocalModel,
    ids: tuple[int, ...],
    deliveries: Sequence[Inbound],
    history: tuple[tuple[int, ...], KVState] | None = None,
) -> Assembly:
    """Find state for a context: the longest exact prefix of all at hand, then splices, then what is
    missing.
    """
    offers = _offers(model, ids, deliveries, history)
    carries = [carry for carry, _ in offers]
    best, computed = _longest_prefix(ids, carries, history)
    # The last token is always computed: its logits choose the first new one.
    places = Places(len(ids) - 1)
    reach = len(places.put(best)) if best is not None else 0
    repaired: set[int] = set()
    projected: set[int] = set()
    fused = set(range(reach)) if computed else set[int]()
    recomputed: set[int] = set()
    for number in _in_order(deliveries):
        carry = carries[number]
        for piece in carry.computed:
            fused.update(places.put(piece))
        for piece in carry.spliced:
            put = places.put(piece)
            projected.update(put if carry.projected else ())
            fused.update(put if carry.fused else ())
            recomputed.update(put if carry.recomputed else ())
        repaired.update(position for position in carry.repair if position >= reach)
    states = places.states
    covered = {position for state in states for position in range(state.start, state.stop)}
    missing = tuple(p for p in range(len(ids)) if p not in covered or p in repaired)
    layer_tokens = sum(carry.report.layer_tokens for carry in carries)
    found = Assembly(
        tuple(states),
        missing,
        frozenset(repaired & covered),
        frozenset(projected - repaired),
        frozenset(fused - repaired),
        frozenset(recomputed - repaired),
        layer_tokens,
        (),
    )
    rough = first_approximate(states, missing)
    settled = tuple(
        (one.edge, _settled(carry, one.arrival, reach, found, rough), seconds)
        for one, (carry, seconds) in zip(deliveries, offers, strict=True)
    )
    return replace(found, carries=settled)


def _offers(
    model: LocalModel,
    ids: tuple[int, ...],
    deliveries: Sequence[Inbound],
    history: tuple[tuple[int, ...], KVState] | None,
) -> list[tuple[Carry, float]]:
    """Per delivery, its carry and the seconds it took; those that come first in the context are
    carried first.
    """
    found: dict[int, tuple[Carry, float]] = {}
    placed = Places(len(ids) - 1)
    if history is not None:
        placed.put(history[1].slice(0, _reach(ids, history)))
    for number in _in_order(deliveries):
        began = perf_counter()
        before = tuple(sorted(placed.states, key=lambda state: state.start))
        arrival = replace(deliveries[number].arrival, before=before)
        carry = _decompressed(replace(deliveries[number], arrival=arrival), model)
        found[number] = carry, perf_counter() - began
        for piece in (*carry.computed, *carry.spliced, *((carry.prefix,) if carry.prefix else ())):
            placed.put(piece)
    return [found[number] for number in range(len(deliveries))]


def _in_order(deliveries: Sequence[Inbound]) -> list[int]:
    """Numbers of the deliveries by where they stand in the context."""
    starts = [min(one.arrival.positions, default=0) for one in deliveries]
    return sorted(range(len(deliveries)), key=lambda number: starts[number])


def _longest_prefix(
    ids: tuple[int, ...],
    carries: Sequence[Carry],
    history: tuple[tuple[int, ...], KVState] | None,
) -> tuple[KVState | None, bool]:
    """The longest state from position 0 on, and whether a channel computed it just now.

    No message's prefix reaches into rows that a bridge has enriched. Beside the agent's own past,
    in which an earlier message may be enriched, what a channel computed anew is not wanted.
    """
    stop = min(
        (one.start for carry in carries if carry.fused for one in carry.spliced), default=len(ids)
    )
    found = [
        (carry.prefix.slice(0, min(len(carry.prefix), stop)), carry.fused)
        for carry in carries
        if carry.prefix is not None and not (carry.fused and history is not None)
    ]
    if history is not None:
        _, state = history
        found.append((state.slice(0, _reach(ids, history)), False))
    return max(found, key=lambda one: len(one[0]), default=(None, False))


def _reach(ids: tuple[int, ...], history: tuple[tuple[int, ...], KVState]) -> int:
    """How many of a context's tokens the agent's own state covers."""
    known, state = history
    return min(common_prefix(ids, known), state.stop)


def _settled(
    carry: Carry, arrival: Arrival, reach: int, assembly: Assembly, rough: int | None
) -> CarryReport:
    """A carry's report once all states are in place: what it claimed alone, another's prefix or
    splice may change.

    Args:
        carry: The carry.
        arrival: The message in its place.
        reach: Length of the exact prefix in place.
        assembly: What is in place.
        rough: First position in place whose rows are approximate, None for none.
    """
    report, positions = carry.report, frozenset(arrival.positions)
    if not positions or report.channel == TextChannel.name:
        return report
    projected = len(positions & assembly.projected) if carry.projected else 0
    exact = rough is None or rough > max(positions)
    reason = report.reason
    if (carry.spliced or carry.prefix is None) and max(positions) < reach:
        reason = "continuation: a longer prefix holds the message"
    elif report.exact and not exact:
        reason += "; the state before it is approximate"
    return replace(
        report,
        exact=exact,
        reason=reason,
        reused=len(positions.difference(assembly.missing, assembly.fused, assembly.recomputed))
        - projected,
        repaired=len(positions & (assembly.repaired | assembly.recomputed)),
        projected=projected,
    )


def _decompressed(delivery: Inbound, model: LocalModel) -> Carry:
    """The carry of a delivery, which may have to be unpacked first; what it brings counts as it was
    kept.
    """
    compressed = delivery.compressed
    if compressed is None:
        return _carry(delivery, model)
    message = replace(delivery.arrival.message, state=compressed.decompress())
    carry = _carry(replace(delivery, arrival=replace(delivery.arrival, message=message)), model)
    if carry.prefix is None and not carry.spliced:
        return carry
    smaller = round(carry.report.bytes * compressed.nbytes / max(compressed.raw_bytes, 1))
    reason = f"{carry.report.reason}; kept as {compressed.codec}"
    return replace(carry, report=replace(carry.report, bytes=smaller, reason=reason))


def _carry(delivery: Inbound, model: LocalModel) -> Carry:
    try:
        carry = delivery.channel.carry(delivery.arrival, model)
        if _moves_keys(carry, delivery.arrival) and not model.shifts_keys:
            raise StateError(
                "this model's keys cannot be moved to other positions",
                expected="the same tokens before the message at both ends",
                fix="let the message come first in the receiver's context, or use a text channel",
            )
        return carry
    except (ChannelError, ModelSupportError) as error:
        if not delivery.fallback:
            raise RunError(
                error.found, edge=delivery.name, expected=error.expected, fix=error.fix
            ) from error
        carry = TextChannel().carry(delivery.arrival, model)
        reason = f"fallback from {delivery.channel.name}: {error.found}"
        return replace(carry, report=replace(carry.report, reason=reason))


def _moves_keys(carry: Carry, arrival: Arrival) -> bool:
    # A bridge rotates keys to their positions, so it needs the rotation to be known as well.
    moved = any(span.at != span.source for span in arrival.spans)
    return bool(carry.spliced) and (carry.projected or carry.fused or moved)
