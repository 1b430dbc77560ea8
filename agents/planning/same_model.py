"""Whether a message of equal weights stands, token for token, where it stood at its sharer."""

from dataclasses import replace
from typing import TYPE_CHECKING

from unspoken.agents.planning.choice import ChannelChoice, EdgeEnds
from unspoken.agents.planning.outline import OutlinePiece, prints_message

if TYPE_CHECKING:
    from unspoken.agents.models.base import AgentModel


def same_weights(ends: EdgeEnds) -> ChannelChoice:
    """Whether the same pieces stand before and in the message at both ends."""
    edge = ends.edge
    changed = rewritten(ends)
    if changed is not None:
        return changed
    if edge.loop and ends.spec.agents[edge.to].memory != "turn":
        reason = f"same weights, but it comes after what {edge.to} has written before"
        advice = (
            f"memory: turn at {edge.to} and share: context on this edge, so that {edge.to} goes "
            f"on from the whole conversation of {edge.from_}"
        )
        return ChannelChoice("splice", reason, advice=advice)
    theirs, ours = ends.sharer_context, ends.receiver_context
    last = max(index for index, piece in enumerate(ours) if piece.edge == ends.number)
    for left, right in zip(theirs, ours[: last + 1], strict=False):
        if left.key != right.key:
            reason = (
                f"same weights, but {left.label} at {edge.from_} "
                f"stands where {edge.to} has {right.label}"
            )
            return ChannelChoice("splice", reason, advice=_advice(ends, left, right))
    if len(theirs) <= last:
        reason = f"{edge.to} has more before the message than {edge.from_}"
        return ChannelChoice("splice", reason, advice=_before_it(ends))
    reason = (
        f"same weights, and the same tokens stand before the message at {edge.from_} and {edge.to}"
    )
    return ChannelChoice("continuation", reason)


def rewritten(ends: EdgeEnds) -> ChannelChoice | None:
    """What becomes of a message whose tokens have no place in the receiver's prompt, or None."""
    edge, spec = ends.edge, ends.spec
    if any(piece.edge == ends.number for piece in ends.receiver_context):
        return None
    if spec.share_of(edge) == "context":
        reason = (
            f"whole turns cannot stand inside the prompt of {edge.to}, so it quotes their words"
        )
        expected = f"{edge.from_}.text outside the prompt, or share: output"
        advice = f"leave {edge.from_}.text out of the prompt of {edge.to}, before which they stand"
        return ChannelChoice("text", reason, expected=expected, advice=advice)
    if prints_message(spec.agents[edge.to].prompt, edge.from_):
        reason = f"same weights; the prompt of {edge.to} places the message under a condition"
        advice = f"print {edge.from_}.text first in the prompt of {edge.to}, under no condition"
        return ChannelChoice("splice", reason, advice=advice)
    reason = f"the prompt of {edge.to} changes the message's words, so {edge.to} reads them again"
    expected = f"the whole of {edge.from_}.text, unfiltered"
    advice = f"print {expected}, or leave it out: it then stands before the prompt"
    return ChannelChoice("text", reason, expected=expected, advice=advice)


def _advice(ends: EdgeEnds, left: OutlinePiece, right: OutlinePiece) -> str:
    """What would let a message go on where its sharer's context does."""
    if "system" in (left.key[0], right.key[0]):
        return "put the instructions into the prompt, and leave the system prompt out at both ends"
    if left.key[0] == "thoughts":
        return "thoughts: keep on this edge"
    if ends.spec.share_of(ends.edge) == "output":
        return _before_it(ends)
    if right.edge == ends.number:
        return _before_it(ends) if left.edge is not None else _in_place(ends)
    if right.edge is not None:
        return f"let this edge come first, or give {ends.edge.to} order: auto"
    return _in_place(ends)


def _before_it(ends: EdgeEnds) -> str:
    """What is lacking before a message: what its sharer read."""
    first = "" if ends.receiver_context[1].edge == ends.number else ", as its first"
    return (
        f"share: context{first}: {ends.edge.to} then goes on from the whole conversation of "
        f"{ends.edge.from_}"
    )


def _in_place(ends: EdgeEnds) -> str:
    """Where the receiver has words of its own before a message, or in another role."""
    edge = ends.edge
    if edge.as_ != "user":
        return (
            f"leave out as: {edge.as_}, so that the message stands in the role that it was read in"
        )
    return f"print {edge.from_}.text first in the prompt of {edge.to}, or leave it out there"


def read_again(choice: ChannelChoice, receiver: "AgentModel") -> ChannelChoice:
    """The choice for a model with recurrent layers, which go on from snapshots alone."""
    layers = receiver.geometry.layers
    count = sum(bool(layer.recurrent) for layer in layers)
    of = f"{count} of the model's {len(layers)} layers are recurrent"
    if choice.mode == "continuation":
        why = f"{of}, and go on from the snapshot at the end of the message's last turn"
        return replace(choice, reason=f"{choice.reason}; {why}")
    if choice.mode != "splice":
        return choice
    reason = (
        f"{of}, and keep one state of all tokens before: a splice would read the message again "
        f"through {receiver.geometry.described_reading()}, so it goes by text, which is exact"
    )
    expected = "the same tokens before the message at both ends"
    return replace(choice, mode="text", reason=f"{choice.reason}; {reason}", expected=expected)
