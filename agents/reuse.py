"""How an edge's message can serve its receiver: its state continues the context, is spliced in, or is of no use."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from unspoken.agents.bridged import FindBridge, other_weights
from unspoken.agents.finetuned import FindProfile, across, of_one_base
from unspoken.agents.outline import Piece
from unspoken.agents.placing import same_weights
from unspoken.agents.spec import WorkflowSpec
from unspoken.agents.verdict import Verdict, make_channel, shifts_keys
from unspoken.channels.errors import ChannelError, ModelSupportError
from unspoken.channels.projected import Bridge

if TYPE_CHECKING:
    from unspoken.agents.model import LocalModel
    from unspoken.channels.base import Channel

__all__ = ["judge"]


def judge(
    spec: WorkflowSpec,
    number: int,
    contexts: Mapping[str, Sequence[Piece]],
    models: Mapping[str, "LocalModel"],
    find_bridge: FindBridge = lambda sharer, receiver: None,
    given: Bridge | None = None,
    find_profile: FindProfile = lambda sharer, receiver: None,
    own: "Channel | None" = None,
) -> Verdict:
    """Decide, before anything ran, how one edge's message can be carried.

    Args:
        spec: A valid workflow.
        number: The edge.
        contexts: Outline of every agent's context.
        models: The loaded model of every agent, by agent.
        find_bridge: Where bridges are looked for.
        given: A bridge that the workflow names for this very edge.
        find_profile: Where profiles of fine-tunes are looked for.
        own: A channel of the workflow's own class that was connected here.
    """
    edge = spec.edges[number]
    if edge.channel == "text":
        return Verdict("text", "the workflow asks for text")
    carries_state = own is None or own.carries_state
    if spec.agents[edge.from_].for_each is not None and carries_state:
        reason = f"{edge.from_} runs once per item, and its items have contexts of their own"
        return Verdict("text", reason, "a sharer with one context")
    sharer, receiver = models[edge.from_], models[edge.to]
    if own is not None:
        return _by_own(own, sharer, receiver)
    if edge.channel == "projected_cache":
        return other_weights(spec, number, contexts, models, find_bridge, given)
    if of_one_base(sharer, receiver):
        verdict = across(spec, number, contexts, models, find_profile)
        if verdict.mode != "text" or edge.channel != "auto":
            return verdict
        other = other_weights(spec, number, contexts, models, find_bridge, None)
        return other if other.mode != "text" else _neither(verdict, other)
    try:
        make_channel(edge, "same_model_cache").check(sharer, receiver)
    except ChannelError as error:
        if edge.channel != "auto" or sharer.identity == receiver.identity:
            return Verdict("text", error.found, error.expected)
        return other_weights(spec, number, contexts, models, find_bridge, None)
    verdict = same_weights(spec, number, contexts)
    if verdict.mode == "splice" and not shifts_keys(receiver):
        reason = (
            "this model's keys cannot be moved, and the message stands elsewhere than at its sharer"
        )
        return Verdict("text", reason, "the same tokens before the message at both ends")
    return verdict


def _by_own(channel: "Channel", sharer: "LocalModel", receiver: "LocalModel") -> Verdict:
    """A channel of the workflow's own class, where it takes the pair."""
    try:
        channel.check(sharer, receiver)
    except (ChannelError, ModelSupportError) as error:
        return Verdict("text", error.found, error.expected)
    reason = f"the workflow's own {type(channel).__name__}, which tells at run time how it carried"
    return Verdict("own", reason, own=channel)


def _neither(across: Verdict, bridged: Verdict) -> Verdict:
    """Text for two reasons: each step down from `auto` is told."""
    if across.reason == bridged.reason:
        return bridged
    advice = ", or ".join(one for one in (across.advice, bridged.advice) if one)
    return Verdict("text", f"{across.reason}; {bridged.reason}", across.expected, advice)
