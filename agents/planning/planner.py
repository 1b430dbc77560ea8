"""Which channel each edge gets, and why: EXPLAIN for a workflow."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from unspoken.agents.planning.bridges import FindBridge, other_weights
from unspoken.agents.planning.choice import ChannelChoice, make_channel, shifts_keys
from unspoken.agents.planning.finetunes import FindProfile, across, of_one_base
from unspoken.agents.planning.outline import Piece, outline
from unspoken.agents.planning.plan import EdgePlan, Plan
from unspoken.agents.planning.same_model import same_weights
from unspoken.agents.prompts.context import ChatTurn
from unspoken.agents.prompts.jinja import references, render
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
from unspoken.channels.projected import Bridge

if TYPE_CHECKING:
    from unspoken.agents.models.model import LocalModel
    from unspoken.channels.base import Channel

__all__ = [
    "choose_channel",
    "plan_workflow",
]


def plan_workflow(
    spec: WorkflowSpec,
    models: Mapping[str, "LocalModel"],
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
    contexts = {name: outline(spec, name) for name in spec.agents}
    edges, channels, problems = [], {}, []
    for number, edge in enumerate(spec.edges):
        problem = _impossible_layers(edge, number, models[edge.to])
        if problem is not None:
            problems.append(problem)
            continue
        given = (bridges or {}).get(number)
        mine = (custom or {}).get(number)
        choice = choose_channel(
            spec, number, contexts, models, find_bridge, given, find_profile, mine
        )
        if choice.mode == "text" and edge.channel != "text" and edge.fallback == "error":
            where, fix = f"edges[{number}].channel", "use channel: text, or fallback: text"
            fix = f"{choice.advice}, or {fix}" if choice.advice else fix
            problems.append(Problem(choice.reason, where, choice.expected, fix))
            continue
        channels[number] = make_channel(edge, choice.channel, choice.bridge, choice)
        edges.append(_plan_edge(spec, number, choice, models, inputs))
    if problems:
        raise WorkflowError(problems)
    notes = {spec.agents[name].model: _notes(model) for name, model in models.items()}
    return Plan(workflow=spec.name, edges=tuple(edges), channels=channels, notes=notes)


def _impossible_layers(edge: EdgeSpec, number: int, receiver: "LocalModel") -> Problem | None:
    """Groups of layers that the receiver does not have: a mistake, and no reason to fall back."""
    if not isinstance(edge.recompute, tuple):
        return None
    try:
        check_layer_ranges(edge.recompute, len(receiver.geometry.layers))
    except InputError as error:
        return Problem(error.found, f"edges[{number}].recompute", error.expected, error.fix)
    return None


def _notes(model: "LocalModel") -> tuple[str, ...]:
    plain = "it brings no chat template: turns are plain paragraphs"
    return ((plain,) if model.template.plain else ()) + model.template.notes


def _plan_edge(
    spec: WorkflowSpec,
    number: int,
    choice: ChannelChoice,
    models: Mapping[str, "LocalModel"],
    inputs: Mapping[str, object] | None,
) -> EdgePlan:
    edge = spec.edges[number]
    model = models[edge.from_]
    compressed = edge.codec != "raw" and _brings_state(choice)
    audited = None if choice.mode == "fused" else choice.bridge
    # Text in place of a cache that the workflow names is a fallback; ``auto`` asks for none.
    fell_back = edge.channel not in ("auto", choice.channel)
    return EdgePlan(
        number=number,
        sharer=edge.from_,
        receiver=edge.to,
        asked=edge.channel,
        channel=choice.channel,
        share=spec.share_of(edge),
        mode=choice.mode,
        reason=choice.reason + (f"; kept as {edge.codec}, so not exact" if compressed else ""),
        advice=choice.advice,
        tokens=_known_tokens(spec, edge, model, inputs),
        bytes_per_token=_bytes_per_token(edge, choice, model),
        retention=None if audited is None else audited.retention_lower_bound,
        native_layers=0 if audited is None else audited.native_layers,
        unfitted=choice.unfitted,
        recompute=choice.layer_ranges,
        kl=choice.max_kl,
        fallback=Fallback(edge.channel, choice.reason) if fell_back else None,
    )


def _brings_state(choice: ChannelChoice) -> bool:
    return choice.channel != "text" if choice.custom is None else choice.custom.carries_state


def _bytes_per_token(edge: EdgeSpec, choice: ChannelChoice, model: "LocalModel") -> int:
    if not _brings_state(choice):
        return 0
    if choice.layer_ranges is not None:
        return bytes_per_token(model.geometry, model.dtype.itemsize, choice.layer_ranges)
    return compressed_bytes_per_token(edge.codec, model.geometry, model.dtype)


def _known_tokens(
    spec: WorkflowSpec,
    edge: EdgeSpec,
    model: "LocalModel",
    inputs: Mapping[str, object] | None,
) -> int | None:
    """Tokens of a shared prompt's turn, where the prompt depends on inputs alone."""
    prompt = spec.agents[edge.from_].prompt
    read = references(prompt)
    known = inputs is not None and {one.attribute for one in read} <= inputs.keys()
    if spec.share_of(edge) != "prompt" or not known or {one.root for one in read} - {"inputs"}:
        return None
    turn = ChatTurn(edge.as_, (render(prompt, {"inputs": dict(inputs or {})}),))
    return len(model.context_builder.compose([turn]).segments[-1].ids)


def choose_channel(
    spec: WorkflowSpec,
    number: int,
    contexts: Mapping[str, Sequence[Piece]],
    models: Mapping[str, "LocalModel"],
    find_bridge: FindBridge = lambda sharer, receiver: None,
    given: Bridge | None = None,
    find_profile: FindProfile = lambda sharer, receiver: None,
    custom: "Channel | None" = None,
) -> ChannelChoice:
    """Decide, before anything ran, how one edge's message can be carried.

    Args:
        spec: A valid workflow.
        number: The edge.
        contexts: Outline of every agent's context.
        models: The loaded model of every agent, by agent.
        find_bridge: Where bridges are looked for.
        given: A bridge that the workflow names for this very edge.
        find_profile: Where profiles of fine-tunes are looked for.
        custom: A channel of the workflow's own class that was connected here.
    """
    edge = spec.edges[number]
    if edge.channel == "text":
        return ChannelChoice("text", "the workflow asks for text")
    carries_state = custom is None or custom.carries_state
    if spec.agents[edge.from_].for_each is not None and carries_state:
        reason = f"{edge.from_} runs once per item, and its items have contexts of their own"
        return ChannelChoice("text", reason, expected="a sharer with one context")
    sharer, receiver = models[edge.from_], models[edge.to]
    if custom is not None:
        return _by_custom(custom, sharer, receiver)
    if edge.channel == "projected_cache":
        return other_weights(spec, number, contexts, models, find_bridge, given)
    if of_one_base(sharer, receiver):
        choice = across(spec, number, contexts, models, find_profile)
        if choice.mode != "text" or edge.channel != "auto":
            return choice
        other = other_weights(spec, number, contexts, models, find_bridge, None)
        return other if other.mode != "text" else _neither(choice, other)
    try:
        make_channel(edge, "same_model_cache").check(sharer, receiver)
    except ChannelError as error:
        if edge.channel != "auto" or sharer.identity == receiver.identity:
            return ChannelChoice("text", error.found, expected=error.expected)
        return other_weights(spec, number, contexts, models, find_bridge, None)
    choice = same_weights(spec, number, contexts)
    if choice.mode == "splice" and not shifts_keys(receiver):
        reason = (
            "this model's keys cannot be moved, and the message stands elsewhere than at its sharer"
        )
        return ChannelChoice(
            "text", reason, expected="the same tokens before the message at both ends"
        )
    return choice


def _by_custom(channel: "Channel", sharer: "LocalModel", receiver: "LocalModel") -> ChannelChoice:
    """A channel of the workflow's own class, where it takes the pair."""
    try:
        channel.check(sharer, receiver)
    except (ChannelError, ModelSupportError) as error:
        return ChannelChoice("text", error.found, expected=error.expected)
    reason = f"the workflow's own {type(channel).__name__}, which tells at run time how it carried"
    return ChannelChoice("custom", reason, custom=channel)


def _neither(across: ChannelChoice, bridged: ChannelChoice) -> ChannelChoice:
    """Text for two reasons: each step down from `auto` is told."""
    if across.reason == bridged.reason:
        return bridged
    advice = ", or ".join(one for one in (across.advice, bridged.advice) if one)
    return ChannelChoice(
        "text", f"{across.reason}; {bridged.reason}", expected=across.expected, advice=advice
    )
