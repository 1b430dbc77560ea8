"""What would make an edge cheaper, where whoever chose its channel had nothing better to say."""

from typing import TYPE_CHECKING

from unspoken.agents.delegates.model import Delegate
from unspoken.agents.planning.choice import ChannelChoice, EdgeEnds

if TYPE_CHECKING:
    from collections.abc import Callable


def advice_for(
    ends: EdgeEnds, choice: ChannelChoice, unasked: "Callable[[], ChannelChoice]"
) -> str:
    """What to change so that an edge becomes cheaper; empty for a continuation alone.

    Args:
        ends: The edge.
        choice: What was chosen for it.
        unasked: What would be chosen if the edge left the channel to the planner.
    """
    if choice.mode == "continuation" or choice.advice:
        return choice.advice
    edge = ends.edge
    match choice.mode:
        case "text":
            return _of_text(ends, unasked)
        case "splice":
            return f"share: context, so that {edge.to} goes on from what {edge.from_} read"
        case "recompute":
            return f"one set of weights for {edge.from_} and {edge.to}: nothing is then recomputed"
        case "projected" if choice.unfitted:
            return "unspoken run, whose first run fits the bridge, or unspoken bridge fit before it"
        case "projected":
            return f"one model for {edge.from_} and {edge.to}: no bridge then maps the message"
        case "fused":
            return f"fuse: false on this edge, if {edge.to} need not read the message itself"
    return "one of the package's own channels, if this one computes more than they do"


def _of_text(ends: EdgeEnds, unasked: "Callable[[], ChannelChoice]") -> str:
    """What would take the place of words, or make fewer of them."""
    edge, spec = ends.edge, ends.spec
    shorter = "share: output, which has fewer tokens" if spec.share_of(edge) == "context" else ""
    for name, model in ((edge.from_, ends.sharer), (edge.to, ends.receiver)):
        if isinstance(model, Delegate):
            return shorter or f"nothing but fewer words: {name} has no cache"
    if edge.channel == "text":
        other = unasked()
        if other.mode != "text":
            return f"leave out channel: text; this edge would then be a {other.mode}"
        if other.advice:
            return f"leave out channel: text, and {other.advice}"
    if spec.agents[edge.from_].for_each is not None:
        return f"fewer tokens to each item of {edge.from_}: {edge.to} reads all that they wrote"
    if ends.sharer.identity != ends.receiver.identity:
        return f"one model for {edge.from_} and {edge.to}, whose cache then serves both"
    if ends.sharer.dtype != ends.receiver.dtype:
        return f"one dtype for {edge.from_} and {edge.to}, whose cache then serves both"
    return shorter or f"the same tokens before the message at {edge.from_} and {edge.to}"
