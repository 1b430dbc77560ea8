"""States in place for a turn's context: what messages and an agent's past bring, and what is left.

Every message offers state for some positions. First the longest exact prefix of all offers is put
in place, then the other pieces in the order of the context. A position belongs to the piece that
came first, and each position remembers its origin, so every count of a turn is a count over
positions. What nothing covers, and what a channel wants repaired, the turn computes.
"""

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter

from unspoken.agents.engines.base import Carried, Inbound
from unspoken.agents.engines.offers import Resolve, offer
from unspoken.agents.models.base import TurnModel
from unspoken.agents.models.hf_cache import first_approximate
from unspoken.channels.base import Arrival, Carry, CarryReport, Origin, Piece
from unspoken.channels.kv.geometry import CacheGeometry
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import common_prefix
from unspoken.channels.text import TextChannel


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """Earlier turns: the ids of their context, and their state.

    Attributes:
        ids: The ids.
        state: Their state.
        own: Whether they are the agent's own; else they are whoever's began with the same ids.
    """

    ids: tuple[int, ...]
    state: KVState
    own: bool = True

    def shared_with(self, ids: tuple[int, ...], geometry: CacheGeometry) -> Piece:
        """The part that a new context begins with too, as far as the model can go on after it."""
        stop = min(common_prefix(ids, self.ids), self.state.stop)
        return Piece(self.state.slice(0, self.state.usable(geometry, stop)))


class Places:
    """Positions of a context, each served by the piece that was put there first.

    Args:
        stop: Number of positions.

    Attributes:
        states: Slices that do not overlap, in the order in which they were put.
        origins: Per position, the origin of its row; None where there is none.
    """

    def __init__(self, stop: int) -> None:
        self._taken = bytearray(stop)
        self.states: list[KVState] = []
        self.origins: list[Origin | None] = [None] * stop

    def put(self, piece: Piece) -> None:
        """Put a piece where nothing stands yet."""
        state = piece.state
        stop = min(state.stop, len(self._taken))
        first = self._taken.find(b"\0", state.start, stop)
        while first >= 0:
            end = self._taken.find(b"\1", first, stop)
            end = stop if end < 0 else end
            self.states.append(state.slice(first, end))
            self._taken[first:end] = b"\1" * (end - first)
            self.origins[first:end] = [piece.origin] * (end - first)
            first = self._taken.find(b"\0", end, stop)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Assembly:
    """States in place for a context, and what is left to compute.

    Attributes:
        states: States at their positions.
        missing: Positions to compute, ascending.
        repaired: Those of them that have a state all the same.
        origins: Per position of the context, how its row came to be; None for one to compute.
        layer_tokens: Layers times tokens that channels ran in this model.
        carries: Per message, how it was carried.
    """

    states: tuple[KVState, ...]
    missing: tuple[int, ...]
    repaired: frozenset[int]
    origins: tuple[Origin | None, ...]
    layer_tokens: int
    carries: tuple[Carried, ...] = ()

    def positions(self, *origins: Origin) -> frozenset[int]:
        """Positions in place whose rows came to be in one of these ways."""
        return frozenset(at for at, origin in enumerate(self.origins) if origin in origins)


def assemble(
    model: TurnModel,
    ids: tuple[int, ...],
    inbound: Sequence[Inbound],
    past: Past | None = None,
    resolve: Resolve | None = None,
) -> Assembly:
    """`assembling` at once, on this thread."""
    steps = assembling(model, ids, inbound, past, resolve)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            assembly: Assembly = end.value
            return assembly


def assembling(
    model: TurnModel,
    ids: tuple[int, ...],
    inbound: Sequence[Inbound],
    past: Past | None = None,
    resolve: Resolve | None = None,
) -> Generator[None, None, Assembly]:
    """Find state for a context: the longest exact prefix, then pieces, then what is left.

    Each carry is a step, so that a cancel or another turn waits for no more than one.

    Args:
        model: The receiver.
        ids: Its context.
        inbound: Messages in their places, with their states or with tickets for them.
        past: The agent's earlier turns.
        resolve: Gives the state of a ticket.

    Raises:
        RunError: A message that cannot be carried, on an edge that does not fall back.
    """
    offers = yield from _offers(model, ids, inbound, past, resolve)
    carries = [carry for carry, _ in offers]
    # The last token is always computed: its logits choose the first new one.
    places = Places(len(ids) - 1)
    prefix = _longest_prefix(ids, carries, past, model.geometry)
    if prefix is not None:
        places.put(prefix)
    reach = sum(map(len, places.states))
    repair: set[int] = set()
    for number in _in_order(inbound):
        for piece in carries[number].pieces:
            places.put(piece)
        repair.update(position for position in carries[number].repair if position >= reach)
    placed = (*places.origins, None)
    origins = tuple(None if at in repair else origin for at, origin in enumerate(placed))
    missing = tuple(at for at, origin in enumerate(origins) if origin is None)
    assembly = Assembly(
        states=tuple(places.states),
        missing=missing,
        repaired=frozenset(at for at in repair if placed[at] is not None),
        origins=origins,
        layer_tokens=sum(carry.report.layer_tokens for carry in carries),
    )
    rough = first_approximate(places.states, missing)
    settled = tuple(
        Carried(one.edge, _settled(carry, one.arrival, reach, assembly, rough), seconds)
        for one, (carry, seconds) in zip(inbound, offers, strict=True)
        if one.arrival is not None
    )
    return replace(assembly, carries=settled)


def _offers(
    model: TurnModel,
    ids: tuple[int, ...],
    inbound: Sequence[Inbound],
    past: Past | None,
    resolve: Resolve | None,
) -> Generator[None, None, list[tuple[Carry, float]]]:
    """Per message, its carry and the seconds it took; the first in the context is carried first."""
    offers: dict[int, tuple[Carry, float]] = {}
    placed = Places(len(ids) - 1)
    if past is not None:
        placed.put(past.shared_with(ids, model.geometry))
    for number in _in_order(inbound):
        began = perf_counter()
        before = tuple(sorted(placed.states, key=lambda state: state.start))
        carry = offer(inbound[number], before, model, resolve)
        offers[number] = carry, perf_counter() - began
        for piece in (*carry.pieces, *([carry.prefix] if carry.prefix else [])):
            placed.put(piece)
        yield
    return [offers[number] for number in range(len(inbound))]


def _in_order(inbound: Sequence[Inbound]) -> list[int]:
    """Numbers of the messages by where they stand in the context."""
    starts = [min(one.arrival.positions, default=0) if one.arrival else 0 for one in inbound]
    return sorted(range(len(inbound)), key=starts.__getitem__)


def _longest_prefix(
    ids: tuple[int, ...], carries: Sequence[Carry], past: Past | None, geometry: CacheGeometry
) -> Piece | None:
    """The longest state from position 0 on, of earlier turns and all prefixes.

    No message's prefix reaches into rows that a bridge has enriched, nor does that of another
    agent's turn. Beside the agent's own past, in which an earlier message may be enriched, what a
    channel computed just now is not wanted.
    """
    ids = ids[:-1]  # the last token is computed in any case
    stop = min((s.start for carry in carries for s in carry.of("fused")), default=len(ids))
    own = past is not None and past.own
    prefixes = [
        _first_rows(prefix, stop, geometry)
        for prefix in (carry.prefix for carry in carries)
        if prefix is not None and not (prefix.origin == "computed" and own)
    ]
    if past is not None:
        shared = past.shared_with(ids[:stop] if not own else ids, geometry)
        prefixes.append(shared)
    return max(prefixes, key=lambda prefix: len(prefix.state), default=None)


def _first_rows(prefix: Piece, stop: int, geometry: CacheGeometry) -> Piece:
    stop = min(len(prefix.state), stop)
    if geometry.recurrent:
        stop = prefix.state.usable(geometry, stop)
    return Piece(prefix.state.slice(0, stop), prefix.origin)


def _settled(
    carry: Carry, arrival: Arrival, reach: int, assembly: Assembly, rough: int | None
) -> CarryReport:
    """A carry's report once all states are in place, which another's prefix or pieces may change.

    Args:
        carry: The carry.
        arrival: The message in its place.
        reach: Length of the exact prefix in place.
        assembly: What is in place.
        rough: First position in place whose rows are approximate, None for none.
    """
    report, positions = carry.report, arrival.positions
    if not positions:
        return report
    counts = Counter(assembly.origins[at] for at in positions)
    if report.channel == TextChannel.name:
        return _text_report(report, counts["reused"])
    exact = rough is None or rough > positions[-1]
    mode, reason = report.mode, report.reason
    if (carry.pieces or carry.prefix is None) and positions[-1] < reach:
        mode = "continuation"
        reason = "continuation: a longer prefix holds the message"
    elif report.exact and not exact:
        reason += "; the state before it is approximate"
    own_projection = len(carry.of("projected")) > 0
    return replace(
        report,
        mode=mode,
        exact=exact,
        reason=reason,
        reused=counts["reused"] + (0 if own_projection else counts["projected"]),
        repaired=len(assembly.repaired.intersection(positions)) + counts["recomputed"],
        projected=counts["projected"] if own_projection else 0,
    )


def _text_report(report: CarryReport, reused: int) -> CarryReport:
    """The report of a text of which some tokens had a state all the same, as of an earlier turn."""
    if not reused:
        return report
    reason = f"{report.reason}; {reused} of its tokens had a state from an earlier turn"
    return replace(report, reason=reason, reused=reused)
