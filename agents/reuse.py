"""How an edge's message can serve its receiver: its state continues the context, is spliced in, or is of no use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unspoken.agents.outline import Piece, prints_message
from unspoken.agents.spec import EdgeSpec, WorkflowSpec
from unspoken.agents.templates import references
from unspoken.channels.errors import ChannelError, ModelSupportError
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

if TYPE_CHECKING:
    from unspoken.agents.model import LocalModel
    from unspoken.channels.base import Channel

__all__ = ["Verdict", "judge", "make_channel"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can cross an edge.

    Attributes:
        mode: ``text``, ``continuation`` or ``splice``.
        reason: Why so, in a sentence.
        expected: What a cache would have needed, where it is text.
        advice: What would make it faster, empty for nothing.
    """

    mode: str
    reason: str
    expected: str = ""
    advice: str = ""


def make_channel(edge: EdgeSpec, name: str) -> "Channel":
    """The channel of a name with an edge's options."""
    if name == "text":
        return TextChannel(edge.share, edge.as_)
    return SameModelCacheChannel(edge.share, edge.as_, edge.repair.sink if edge.repair else 0)


def judge(
    spec: WorkflowSpec,
    number: int,
    contexts: Mapping[str, Sequence[Piece]],
    models: Mapping[str, "LocalModel"],
) -> Verdict:
    """Decide, before anything ran, how one edge's message can be carried.

    Args:
        spec: A valid workflow.
        number: The edge.
        contexts: Outline of every agent's context.
        models: The loaded model of every agent, by agent.
    """
    edge = spec.edges[number]
    if edge.channel == "text":
        return Verdict("text", "the workflow asks for text")
    if spec.agents[edge.from_].for_each is not None:
        reason = f"{edge.from_} runs once per item, and its items have contexts of their own"
        return Verdict("text", reason, "a sharer with one context")
    try:
        make_channel(edge, "same_model_cache").check(models[edge.from_], models[edge.to])
    except ChannelError as error:
        return Verdict("text", error.found, error.expected)
    verdict = _same_weights(spec, number, contexts)
    if verdict.mode == "splice" and not _shifts_keys(models[edge.to]):
        reason = (
            "this model's keys cannot be moved, and the message stands elsewhere than at its sharer"
        )
        return Verdict("text", reason, "the same tokens before the message at both ends")
    return verdict


def _shifts_keys(model: "LocalModel") -> bool:
    try:
        return model.shifts_keys
    except ModelSupportError:
        return False


def _same_weights(
    spec: WorkflowSpec, number: int, contexts: Mapping[str, Sequence[Piece]]
) -> Verdict:
    """Whether the same pieces stand before and in the message at both ends."""
    edge = spec.edges[number]
    if edge.loop:
        reason = f"same weights, but it comes after what {edge.to} has written before"
        return Verdict("splice", reason)
    theirs, ours = contexts[edge.from_], contexts[edge.to]
    last = max((index for index, piece in enumerate(ours) if piece.edge == number), default=None)
    mentioned = any(r.root == edge.from_ for r in references(spec.agents[edge.to].prompt))
    if last is None or (mentioned and spec.share_of(edge) == "context"):
        return _changed_by_the_prompt(spec, edge)
    for left, right in zip(theirs, ours[: last + 1], strict=False):
        if left.key != right.key:
            reason = f"same weights, but {left.label} at {edge.from_} stands where {edge.to} has {right.label}"
            return Verdict("splice", reason, advice=_advice(spec, number, left, right))
    if len(theirs) <= last:
        return Verdict("splice", f"{edge.to} has more before the message than {edge.from_}")
    reason = (
        f"same weights, and the same tokens stand before the message at {edge.from_} and {edge.to}"
    )
    return Verdict("continuation", reason)


def _changed_by_the_prompt(spec: WorkflowSpec, edge: EdgeSpec) -> Verdict:
    if spec.share_of(edge) == "context":
        reason = (
            f"whole turns cannot stand inside the prompt of {edge.to}, so it quotes their words"
        )
        return Verdict("text", reason, f"{edge.from_}.text outside the prompt, or share: output")
    if prints_message(spec.agents[edge.to].prompt, edge.from_):
        return Verdict(
            "splice", f"same weights; the prompt of {edge.to} places the message under a condition"
        )
    reason = f"the prompt of {edge.to} changes the message's words, so they are read anew"
    return Verdict("text", reason, f"the whole of {edge.from_}.text, unfiltered")


def _advice(spec: WorkflowSpec, number: int, left: Piece, right: Piece) -> str:
    if "system" in (left.kind, right.kind):
        return "put the instructions into the prompt, and leave the system prompt out at both ends"
    if right.edge not in (None, number) and spec.share_of(spec.edges[number]) != "output":
        return "let this edge come first"
    return ""
