"""Whether a message of equal weights stands, token for token, where it stood at its sharer."""

from collections.abc import Mapping, Sequence

from unspoken.agents.planning.choice import ChannelChoice
from unspoken.agents.planning.outline import Piece, prints_message
from unspoken.agents.spec.spec import WorkflowSpec

__all__ = ["rewritten", "same_weights"]


def same_weights(
    spec: WorkflowSpec, number: int, contexts: Mapping[str, Sequence[Piece]]
) -> ChannelChoice:
    """Whether the same pieces stand before and in the message at both ends."""
    edge = spec.edges[number]
    if edge.loop:
        reason = f"same weights, but it comes after what {edge.to} has written before"
        return ChannelChoice("splice", reason)
    changed = rewritten(spec, number, contexts)
    if changed is not None:
        return changed
    theirs, ours = contexts[edge.from_], contexts[edge.to]
    last = max(index for index, piece in enumerate(ours) if piece.edge == number)
    for left, right in zip(theirs, ours[: last + 1], strict=False):
        if left.key != right.key:
            reason = (
                f"same weights, but {left.label} at {edge.from_} "
                f"stands where {edge.to} has {right.label}"
            )
            return ChannelChoice("splice", reason, advice=_advice(spec, number, left, right))
    if len(theirs) <= last:
        return ChannelChoice("splice", f"{edge.to} has more before the message than {edge.from_}")
    reason = (
        f"same weights, and the same tokens stand before the message at {edge.from_} and {edge.to}"
    )
    return ChannelChoice("continuation", reason)


def rewritten(
    spec: WorkflowSpec, number: int, contexts: Mapping[str, Sequence[Piece]]
) -> ChannelChoice | None:
    """What becomes of a message whose tokens have no place in the receiver's prompt, or None."""
    edge = spec.edges[number]
    if any(piece.edge == number for piece in contexts[edge.to]):
        return None
    if spec.share_of(edge) == "context":
        reason = (
            f"whole turns cannot stand inside the prompt of {edge.to}, so it quotes their words"
        )
        return ChannelChoice(
            "text", reason, expected=f"{edge.from_}.text outside the prompt, or share: output"
        )
    if prints_message(spec.agents[edge.to].prompt, edge.from_):
        return ChannelChoice(
            "splice", f"same weights; the prompt of {edge.to} places the message under a condition"
        )
    reason = f"the prompt of {edge.to} changes the message's words, so {edge.to} reads them again"
    return ChannelChoice("text", reason, expected=f"the whole of {edge.from_}.text, unfiltered")


def _advice(spec: WorkflowSpec, number: int, left: Piece, right: Piece) -> str:
    if "system" in (left.kind, right.kind):
        return "put the instructions into the prompt, and leave the system prompt out at both ends"
    if right.edge not in (None, number) and spec.share_of(spec.edges[number]) != "output":
        return "let this edge come first"
    return ""
