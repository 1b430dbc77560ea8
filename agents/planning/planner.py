"""Which channel each edge gets, and why: EXPLAIN for a workflow."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from unspoken.agents.delegates.model import Delegate
from unspoken.agents.planning.advice import advice_for
from unspoken.agents.planning.bridges import FindBridge, other_weights
from unspoken.agents.planning.choice import ChannelChoice, EdgeEnds, make_channel, shifts_keys
from unspoken.agents.planning.fan_in import settle_splices
from unspoken.agents.planning.finetunes import FindProfile, across, of_one_base
from unspoken.agents.planning.hops import bound_hops
from unspoken.agents.planning.outline import Outlines
from unspoken.agents.planning.plan import EdgePlan, Plan
from unspoken.agents.planning.same_model import read_again, same_weights
from unspoken.agents.prompts.context import ChatTurn
from unspoken.agents.prompts.jinja import references, render
from unspoken.agents.spec.references import comment_warnings
from unspoken.agents.spec.spec import EdgeSpec, WorkflowSpec
from unspoken.channels.base import Fallback
from unspoken.channels.errors import (
    ChannelError,
    InputError,
    ModelSupportError,
    Problem,
    WorkflowError,
)
from unspoken.channels.finetunes.recompute import bytes_per_token, check_layer_ranges
from unspoken.channels.kv.compressed import compressed_bytes_per_token
from unspoken.channels.pace import affordable_tokens
from unspoken.channels.projected import Bridge
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.sequences import distinct

if TYPE_CHECKING:
    from unspoken.agents.models.base import AgentModel
    from unspoken.channels.base import Channel


def plan_workflow(
    spec: WorkflowSpec,
    models: Mapping[str, "AgentModel"],
    inputs: Mapping[str, object] | None = None,
    *,
    find_bridge: FindBridge = lambda sharer, receiver: None,
    bridges: Mapping[int, "Bridge"] | None = None,
    find_profile: FindProfile = lambda sharer, receiver: None,
    custom: Mapping[int, "Channel"] | None = None,
) -> Plan:
    """Choose every edge's channel.

    Args:
        spec: A valid workflow.
        models: The loaded model of every agent, by agent.
        inputs: Input values, where they are known; token counts need them.
        find_bridge: Where bridges between two models are looked for.
        bridges: Bridges that the workflow itself names, by edge.
        find_profile: Where profiles of fine-tunes of one base are looked for.
        custom: Channels of the workflow's own classes, by edge.

    Raises:
        WorkflowError: An edge with ``fallback: error`` whose channel cannot serve it, or layers
            that there are not.
    """
    templates = {name: model.template for name, model in models.items()}
    outlines, problems = Outlines(spec, templates), list[Problem]()
    every, choices = list(_every_edge(spec, models, outlines)), dict[int, ChannelChoice]()
    for ends in every:
        number = ends.number
        channel, bridge = (custom or {}).get(number), (bridges or {}).get(number)
        problem = _impossible_layers(ends)
        if problem is None:
            choices[number] = choose_channel(ends, channel, bridge, find_bridge, find_profile)
            problem = _refused_text(ends, choices[number])
        problems += [] if problem is None else [problem]
    if problems:
        raise WorkflowError(problems)
    choices, hops = bound_hops(spec, settle_splices(spec, choices))
    _require_allowed(every, choices)
    for ends in every:
        unasked = partial(_unasked, ends, find_bridge, find_profile)
        choice = choices[ends.number]
        advice = advice_for(ends, choice, unasked)
        choices[ends.number] = replace(choice, advice=advice)
    channels = {number: make_channel(spec.edges[number], choices[number]) for number in choices}
    edges = []
    for ends in every:
        edge = _plan_edge(ends, choices[ends.number], inputs, outlines)
        edge = _with_repair(edge, channels[ends.number], ends)
        edges.append(replace(edge, hops=hops[ends.number]))
    notes = {
        spec.agents[name].model: _notes(model)
        for name, model in models.items()
        if not isinstance(model, Delegate)
    }
    return Plan(
        workflow=spec.name,
        edges=tuple(edges),
        channels=channels,
        leading=outlines.leading,
        notes=notes,
        warnings=tuple(comment_warnings(spec)),
    )


def _unasked(ends: EdgeEnds, find_bridge: FindBridge, find_profile: FindProfile) -> ChannelChoice:
    """What an edge would get if it left its channel to the planner."""
    edges = list(ends.spec.edges)
    edges[ends.number] = ends.edge.model_copy(update={"channel": "auto"})
    free = replace(ends, spec=ends.spec.model_copy(update={"edges": edges}))
    return choose_channel(free, None, None, find_bridge, find_profile)


def _every_edge(
    spec: WorkflowSpec, models: Mapping[str, "AgentModel"], contexts: Outlines
) -> Iterator[EdgeEnds]:
    for number, edge in enumerate(spec.edges):
        yield EdgeEnds(
            spec=spec,
            number=number,
            sharer=models[edge.from_],
            receiver=models[edge.to],
            sharer_context=contexts[edge.from_],
            receiver_context=contexts.later(edge.to) if edge.loop else contexts[edge.to],
        )


def _impossible_layers(ends: EdgeEnds) -> Problem | None:
    """Ranges of layers that the receiver does not have: a mistake, and no reason to fall back."""
    if not isinstance(ends.edge.recompute, tuple):
        return None
    try:
        check_layer_ranges(ends.edge.recompute, len(ends.receiver.geometry.layers))
    except InputError as error:
        return Problem(error.found, f"edges[{ends.number}].recompute", error.expected, error.fix)
    return None


def _require_allowed(every: Iterable[EdgeEnds], choices: Mapping[int, ChannelChoice]) -> None:
    """Refuse text that came of the other edges, where an edge must not fall back to it."""
    problems = [_refused_text(ends, choices[ends.number]) for ends in every]
    if refused := [problem for problem in problems if problem is not None]:
        raise WorkflowError(refused)


def _refused_text(ends: EdgeEnds, choice: ChannelChoice) -> Problem | None:
    """Text on an edge that must not fall back to it."""
    edge = ends.edge
    if choice.mode != "text" or edge.channel == "text" or edge.fallback != "error":
        return None
    fix = "use channel: text, or fallback: text"
    fix = f"{choice.advice}, or {fix}" if choice.advice else fix
    return Problem(choice.reason, f"edges[{ends.number}].channel", choice.expected, fix)


def _notes(model: "AgentModel") -> tuple[str, ...]:
    plain = "it brings no chat template: turns are plain paragraphs"
    return ((plain,) if model.template.plain else ()) + model.template.notes


def _plan_edge(
    ends: EdgeEnds, choice: ChannelChoice, inputs: Mapping[str, object] | None, outlines: Outlines
) -> EdgePlan:
    edge, turns = ends.edge, outlines.turns(ends.edge.to)
    compressed = edge.codec != "raw" and _brings_state(choice)
    audited = None if choice.mode == "fused" else choice.bridge
    # Text in place of a cache that the workflow names is a fallback; ``auto`` asks for none.
    fell_back = edge.channel not in ("auto", choice.channel)
    return EdgePlan(
        number=ends.number,
        sharer=edge.from_,
        receiver=edge.to,
        asked=edge.channel,
        channel=choice.channel,
        share=ends.spec.share_of(edge),
        mode=choice.mode,
        place=turns.index(ends.number) + 1 if ends.number in turns else None,
        reason=choice.reason
        + (f"; kept as {edge.codec}, so not exact" if compressed else "")
        + _left_out(ends, choice),
        advice=choice.advice,
        tokens=_known_tokens(ends, inputs),
        bytes_per_token=_bytes_per_token(edge, choice, ends.sharer),
        retention=_kept_at_least(audited),
        native_layers=0 if audited is None else audited.native_layers,
        unfitted=choice.unfitted,
        recompute=choice.layer_ranges,
        kl=choice.max_kl,
        fallback=Fallback(edge.channel, choice.reason) if fell_back else None,
    )


def _left_out(ends: EdgeEnds, choice: ChannelChoice) -> str:
    """What leaving out a sharer's thoughts costs its receiver."""
    prompts = ends.spec.share_of(ends.edge) == "prompt"
    if prompts or not ends.sharer.template.thinks or not ends.spec.drops_thoughts(ends.edge):
        return ""
    moved = " and what follows them is moved" if choice.mode == "splice" else ""
    return f"; the thoughts of {ends.edge.from_} are left out{moved}"


def _with_repair(plan: EdgePlan, channel: "Channel", ends: EdgeEnds) -> EdgePlan:
    """A plan that says how much of a message is computed again, and what a budget pays for."""
    repair = ends.edge.repair
    if plan.mode in ("recompute", "projected", "fused") and repair and repair.budget is not None:
        why = f"a budget serves splices alone, so the first {repair.sink} tokens are computed"
        return replace(plan, reason=f"{plan.reason}; {why}")
    if plan.mode != "splice" or not isinstance(channel, SameModelCacheChannel):
        return plan
    if channel.budget is None:
        repaired, reason = None if channel.deviation else channel.sink, plan.reason
        if repaired and ends.edge.loop:
            # What comes back is short mostly, as the yes or no of a critic.
            reason += f"; its first {repaired} tokens are computed again: one of no more is exact"
        return replace(plan, repaired=repaired, reason=reason)
    tokens = affordable_tokens(ends.receiver, channel.budget)
    paid = f"{channel.budget:g} ms pay for about {tokens} tokens on this machine: its first ones"
    return replace(plan, repaired=tokens, reason=f"{plan.reason}; {paid}")


def _brings_state(choice: ChannelChoice) -> bool:
    return choice.channel != "text" if choice.custom is None else choice.custom.carries_state


def _bytes_per_token(edge: EdgeSpec, choice: ChannelChoice, model: "AgentModel") -> int:
    if not _brings_state(choice):
        return 0
    if choice.layer_ranges is not None:
        return bytes_per_token(model.geometry, model.dtype.itemsize, choice.layer_ranges)
    return compressed_bytes_per_token(edge.codec, model.geometry, model.dtype)


def _known_tokens(ends: EdgeEnds, inputs: Mapping[str, object] | None) -> int | None:
    """Tokens of a shared prompt's turn, where the prompt depends on inputs alone."""
    prompt = ends.spec.agents[ends.edge.from_].prompt
    reads = references(prompt)
    known = inputs is not None and {name.attribute for name in reads} <= inputs.keys()
    shares_prompt = ends.spec.share_of(ends.edge) == "prompt"
    if not known or not shares_prompt or {name.root for name in reads} - {"inputs"}:
        return None
    turn = ChatTurn(ends.edge.as_, (render(prompt, {"inputs": dict(inputs or {})}),))
    return len(ends.sharer.context_builder.compose([turn]).segments[-1].ids)


def choose_channel(
    ends: EdgeEnds,
    custom: "Channel | None",
    given: Bridge | None,
    find_bridge: FindBridge,
    find_profile: FindProfile,
) -> ChannelChoice:
    """Decide how one edge's message can be carried, by its own channel or bridge where given."""
    edge, sharer, receiver = ends.edge, ends.sharer, ends.receiver
    if edge.channel == "text":
        return ChannelChoice("text", "the workflow asks for text")
    for name, model in ((edge.from_, sharer), (edge.to, receiver)):
        if isinstance(model, Delegate):
            reason = f"{name} is {model.kind}, which has words and no cache"
            return ChannelChoice("text", reason, expected="agents with models at both ends")
    carries_state = custom is None or custom.carries_state
    if ends.spec.agents[edge.from_].for_each is not None and carries_state:
        reason = f"{edge.from_} runs once per item, and its items have contexts of their own"
        return ChannelChoice("text", reason, expected="a sharer with one context")
    if custom is not None:
        return _by_custom(custom, sharer, receiver)
    if edge.channel == "projected_cache":
        return other_weights(ends, find_bridge, given)
    if of_one_base(sharer, receiver):
        choice = across(ends, find_profile)
        if choice.mode != "text" or edge.channel != "auto":
            return choice
        bridged = other_weights(ends, find_bridge, None)
        return bridged if bridged.mode != "text" else _neither(choice, bridged)
    try:
        make_channel(edge, ChannelChoice("splice", "")).check(sharer, receiver)
    except ChannelError as error:
        if edge.channel != "auto" or sharer.identity == receiver.identity:
            return ChannelChoice("text", error.found, expected=error.expected)
        return other_weights(ends, find_bridge, None)
    choice = same_weights(ends)
    if receiver.geometry.recurrent:
        return read_again(choice, receiver)
    if choice.mode == "splice" and not shifts_keys(receiver):
        reason = "this model's keys cannot be moved, and the message stands elsewhere than at its"
        expected = "the same tokens before the message at both ends"
        return ChannelChoice("text", f"{reason} sharer", expected=expected, advice=choice.advice)
    return choice


def _by_custom(channel: "Channel", sharer: "AgentModel", receiver: "AgentModel") -> ChannelChoice:
    """A channel of the workflow's own class, where it takes the pair."""
    try:
        channel.check(sharer, receiver)
    except (ChannelError, ModelSupportError) as error:
        return ChannelChoice("text", error.found, expected=error.expected)
    reason = f"the workflow's own {type(channel).__name__}, which tells at run time how it carried"
    return ChannelChoice("custom", reason, custom=channel)


def _neither(across: ChannelChoice, bridged: ChannelChoice) -> ChannelChoice:
    """Text, because neither a profile nor a bridge serves."""
    reason = "; ".join(distinct([across.reason, bridged.reason]))
    advice = ", or ".join(filter(None, distinct([across.advice, bridged.advice])))
    return ChannelChoice("text", reason, expected=across.expected, advice=advice)


def _kept_at_least(bridge: Bridge | None) -> float | None:
    """The share of a message that a bridge's audit shows to be kept."""
    bounds = None if bridge is None else bridge.bounds
    return None if bounds is None else bounds.message_kept
