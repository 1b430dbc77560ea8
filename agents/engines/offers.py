"""What one message offers for a context: its carry, or text in its place.

Every inexact hand-over lets a state differ a little more from what its reader would have computed.
So a state knows how many such hand-overs in a row it came through, and an edge takes no more than
its bound. The message then goes by text, which is exact, and the count begins anew.
"""

from collections.abc import Callable
from dataclasses import replace

from unspoken.agents.engines.base import Inbound, StateRef
from unspoken.agents.models.base import TurnModel
from unspoken.channels.base import Arrival, Carry, Fallback, Piece, inexact_in_a_row
from unspoken.channels.errors import ChannelError, ModelSupportError, RunError, StateError
from unspoken.channels.kv.compressed import CompressedState
from unspoken.channels.kv.state import KVState
from unspoken.channels.text import TextChannel

Resolve = Callable[[StateRef], KVState | CompressedState]


def offer(
    inbound: Inbound, before: tuple[KVState, ...], model: TurnModel, resolve: Resolve | None
) -> Carry:
    """What a message offers; a state that is kept in fewer bytes counts as it is kept."""
    arrival = inbound.arrival
    if arrival is None:
        raise StateError(f"the message of {inbound.sharer!r} has no place in the context")
    state = None
    if inbound.state is not None and resolve is not None:
        state = resolve(inbound.state)
    compressed = state if isinstance(state, CompressedState) else None
    message = arrival.message
    if compressed is not None:
        message = replace(message, state=compressed.decompress())
    elif isinstance(state, KVState):
        message = replace(message, state=state)
    arrival = replace(arrival, message=message, before=before)
    carry = _carry(inbound, arrival, model)
    if not carry.report.exact:
        behind = 0 if message.state is None else message.state.hops
        # A continuation adds nothing of its own to what its state differs by already.
        adds = compressed is not None or carry.report.mode != "continuation"
        most = inbound.most_inexact
        if most is not None and behind >= most and (adds or most == 0):
            return _by_text(inbound, arrival, model, _too_many(most))
        carry = _marked(carry, behind + adds)
    if compressed is None or (carry.prefix is None and not carry.pieces):
        return carry
    smaller = round(carry.report.bytes * compressed.nbytes / max(compressed.raw_bytes, 1))
    reason = f"{carry.report.reason}; kept as {compressed.codec}"
    return replace(carry, report=replace(carry.report, bytes=smaller, reason=reason))


def _too_many(most: int) -> StateError:
    return StateError(
        inexact_in_a_row(most),
        expected=f"at most {most} in a row, as max_inexact of the edge says",
        fix="raise max_inexact on this edge, or use a text channel",
    )


def _marked(carry: Carry, hops: int) -> Carry:
    """A carry that is not exact, with states that say so too, whoever wrote the channel."""
    silent = all(piece.state.exact for piece in _all_pieces(carry))

    def marked(piece: Piece) -> Piece:
        state = (_approximate(piece) if silent else piece).state
        return replace(piece, state=state if state.exact else replace(state, hops=hops))

    prefix = None if carry.prefix is None else marked(carry.prefix)
    return replace(carry, prefix=prefix, pieces=tuple(map(marked, carry.pieces)))


def _all_pieces(carry: Carry) -> tuple[Piece, ...]:
    return carry.pieces if carry.prefix is None else (carry.prefix, *carry.pieces)


def _approximate(piece: Piece) -> Piece:
    if piece.origin == "computed":
        return piece
    return replace(piece, state=replace(piece.state, approximate_from=piece.state.start))


def _carry(inbound: Inbound, arrival: Arrival, model: TurnModel) -> Carry:
    try:
        carry = inbound.channel.carry(arrival, model)
        if _moves_keys(carry, arrival) and not model.shifts_keys:
            raise StateError(
                "this model's keys cannot be moved to other positions",
                expected="the same tokens before the message at both ends",
                fix="let the message come first in the receiver's context, or use a text channel",
            )
        if carry.pieces and model.refuses_fills is not None:
            raise StateError(
                f"this model takes no state between other tokens: {model.refuses_fills}",
                expected="the same tokens before the message at both ends",
                fix="let the message come first in the receiver's context, or use a text channel",
            )
        return carry
    except (ChannelError, ModelSupportError) as error:
        return _by_text(inbound, arrival, model, error)


def _by_text(
    inbound: Inbound, arrival: Arrival, model: TurnModel, error: ChannelError | ModelSupportError
) -> Carry:
    """Text in place of a channel that gives way, where its edge falls back.

    Raises:
        RunError: It does not.
    """
    if not inbound.fallback:
        raise RunError(
            error.found, edge=inbound.name, expected=error.expected, fix=error.fix
        ) from error
    carry = TextChannel().carry(arrival, model)
    fallback = Fallback(inbound.channel.name, error.found)
    reason = f"fallback from {fallback.channel}: {fallback.cause}"
    return replace(carry, report=replace(carry.report, reason=reason, fallback=fallback))


def _moves_keys(carry: Carry, arrival: Arrival) -> bool:
    # A bridge rotates keys to their positions, so it needs the rotation to be known as well.
    bridged = bool(carry.of("projected", "fused"))
    moved = any(span.at != span.source for span in arrival.spans)
    return bridged or (moved and bool(carry.of("reused", "recomputed")))
