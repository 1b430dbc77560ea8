"""A workflow declared in Python: what its agents say, and whether a file can say it too."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from unspoken.agents.agent import Agent
from unspoken.agents.delegates.function import FunctionDelegate
from unspoken.agents.models.base import AgentModel
from unspoken.agents.prompts.jinja import references
from unspoken.agents.spec.problems import describe, listed, schema_problems, suggest
from unspoken.agents.spec.servers import settings_of
from unspoken.agents.spec.spec import AgentSpec, WorkflowSpec
from unspoken.agents.tools.servers import McpServer
from unspoken.channels.base import Channel
from unspoken.channels.errors import InputError, Problem, WorkflowError
from unspoken.channels.projected import ProjectedCacheChannel
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel


def declare(
    agents: Sequence[Agent], models: Mapping[str, AgentModel | str]
) -> tuple[dict[str, Any], dict[str, AgentModel]]:
    """Agents and models as a workflow file has them, and the model objects by name.

    Args:
        agents: The agents.
        models: Names for model objects and references.

    Raises:
        WorkflowError: Two agents, or two servers of tools, have one name.
    """
    for agent in agents:
        name_of(agent)
    for key, model in models.items():
        if not isinstance(model, str) and not hasattr(model, "context_builder"):
            raise InputError(
                f"{describe(model)} stands under the name {key!r} where a model stands",
                expected="a LocalModel, or a model reference such as 'embedded:NAME'",
                fix="wrap a transformers model: LocalModel(model, tokenizer)",
            )
    _require_distinct(agents)
    refs: dict[str, str] = {}
    loaded: dict[str, AgentModel] = {}
    specs = {}
    for agent in agents:
        name = "" if agent.workflow is not None else _model_of(agent, models, refs, loaded)
        specs[agent.name] = agent.spec(name)
    data = {
        "models": {key: _model_data(ref, loaded.get(key)) for key, ref in refs.items()},
        "agents": specs,
        "mcp_servers": _servers(specs),
    }
    return data, loaded


def _servers(agents: Mapping[str, AgentSpec]) -> dict[str, Any]:
    """The servers that agents have tools of, as a workflow file has them."""
    servers = dict[str, McpServer]()
    for name, agent in agents.items():
        for server in (ref.given for ref in agent.tools if ref.given is not None):
            if servers.setdefault(server.name, server) != server:
                found = f"two servers of tools are called {server.name!r}"
                raise WorkflowError(
                    [Problem(found, f"agents.{name}.tools", fix="give each a name of its own")]
                )
    return {name: settings_of(server) for name, server in servers.items()}


def _model_of(
    agent: Agent,
    models: Mapping[str, AgentModel | str],
    refs: dict[str, str],
    loaded: dict[str, AgentModel],
) -> str:
    """The name of an agent's model in the workflow; a function is one of its own."""
    if agent.function is not None:
        name = agent.name
        while name in refs or name in models:
            name += "_"
        refs[name], loaded[name] = "", FunctionDelegate(agent.function)
        return name
    assert agent.model is not None and not callable(agent.model)
    return _model_name(agent.model, models, refs, loaded)


def name_of(agent: Agent | str) -> str:
    """An agent's name.

    Raises:
        InputError: It is no agent.
    """
    if not isinstance(agent, Agent | str):
        raise InputError(
            f"{describe(agent)} stands where an agent stands",
            expected="an Agent of the workflow, or its name",
        )
    return agent if isinstance(agent, str) else agent.name


def given_inputs(given: object) -> Mapping[str, object]:
    """Inputs that were given as a mapping.

    Raises:
        InputError: They are none.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InputError(
            f"{describe(given)} stands where inputs stand",
            expected="a mapping of inputs, or nothing",
            fix="give inputs by name, as in plan(name=value)",
        )
    return given


def inferred_inputs(agents: Sequence[Agent]) -> dict[str, str]:
    """Every ``inputs.X`` that a template reads; a list where an agent runs once per item of it."""
    inputs: dict[str, str] = {}
    for agent in agents:
        templates = [
            (agent.prompt or "", False),
            *((value, False) for value in agent.inputs.values() if isinstance(value, str)),
            (agent.system or "", False),
            (agent.for_each or "none", True),
        ]
        for source, expression in templates:
            for reference in references(source, expression=expression):
                if reference.root == "inputs" and reference.attribute is not None:
                    inputs[reference.attribute] = (
                        "list" if expression else inputs.get(reference.attribute, "text")
                    )
    return inputs


def _model_name(
    model: AgentModel | str,
    named: Mapping[str, AgentModel | str],
    refs: dict[str, str],
    loaded: dict[str, AgentModel],
) -> str:
    """The name of a model in the workflow, entered with its reference."""
    known = next((key for key, other in named.items() if other is model or other == model), None)
    known = known or next((key for key, other in loaded.items() if other is model), None)
    ref = model if isinstance(model, str) else model.ref
    name = (
        known
        or re.sub(r"\W+", "_", ref.rsplit("/", 1)[-1].removeprefix("embedded:")).strip("_")
        or "model"
    )
    while known is None and name in refs and (refs[name] != ref or not isinstance(model, str)):
        name += "_"
    refs[name] = ref
    if not isinstance(model, str):
        loaded[name] = model
    return name


def _model_data(ref: str, model: AgentModel | None) -> dict[str, Any]:
    """A model as a workflow file has it; an object keeps what it was loaded with."""
    data: dict[str, Any] = {"ref": ref or "in memory"}
    return data if model is None else {**data, **model.asked, "adapter": model.adapter}


def _require_distinct(agents: Sequence[Agent]) -> None:
    """Refuse agents of equal names."""
    names = [agent.name for agent in agents]
    problems = [
        Problem(
            f"two agents are called {name!r}", "agents", fix="give each agent a name of its own"
        )
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if problems:
        raise WorkflowError(problems)


def require_models(spec: WorkflowSpec, models: Mapping[str, AgentModel]) -> None:
    """Refuse a model object under a name that no model of the workflow has."""
    for name in models:
        if name not in spec.models:
            raise InputError(
                f"a model was given for {name!r}, which is no model of the workflow",
                expected=listed(spec.models),
                fix=suggest(name, spec.models),
            )


def require_nameable(
    spec: WorkflowSpec,
    models: Mapping[str, AgentModel],
    bridges: Mapping[int, object],
    custom: Mapping[int, object],
) -> None:
    """Refuse to write out what a file cannot name: objects that were made in memory."""
    functions = [key for key, model in models.items() if isinstance(model, FunctionDelegate)]
    if functions:
        raise InputError(
            f"the agent {functions[0]!r} is a function, which a file cannot name",
            expected="agents with models",
            fix="add it in Python, after Workflow.from_yaml",
        )
    nameless = [key for key, model in models.items() if not model.ref]
    if nameless:
        raise InputError(
            f"model {nameless[0]!r} was made in memory and has no reference to write",
            expected="models that were loaded by reference",
            fix="save it to a folder, and load it with LocalModel.load(folder)",
        )
    if bridges:
        edge = spec.edges[min(bridges)]
        raise InputError(
            f"the bridge of {edge.from_} -> {edge.to} was given as an object, which a file cannot "
            "name",
            expected="a bridge that is found by its two models",
            fix='keep it in the store, and connect with "projected_cache"',
        )
    if custom:
        edge = spec.edges[min(custom)]
        raise InputError(
            f"the channel of {edge.from_} -> {edge.to}, {edge.channel!r}, is of a class of your "
            "own",
            expected="channels that a file can name",
            fix="connect it in Python, after Workflow.from_yaml",
        )


OURS: tuple[type[Channel], ...] = (TextChannel, SameModelCacheChannel, ProjectedCacheChannel)
"""The channels that a file can name."""


def with_edge(
    spec: WorkflowSpec, edge: Mapping[str, Any], custom: Mapping[int, Channel]
) -> WorkflowSpec:
    """A spec with one more edge; to the schema, channels of other classes are text."""
    plain = spec.model_dump(by_alias=True, warnings=False)
    edges = [*plain["edges"], edge]
    edges = [item | {"channel": "text"} if n in custom else item for n, item in enumerate(edges)]
    checked = checked_spec({**plain, "agents": spec.agents, "edges": edges})
    named = [
        item.model_copy(update={"channel": custom[n].name}) if n in custom else item
        for n, item in enumerate(checked.edges)
    ]
    return checked.model_copy(update={"edges": type(checked.edges)(named)})


def edge_options(channel: Channel, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of an edge that a channel stands for."""
    kind = type(channel).__name__
    if not isinstance(channel, Channel):
        raise InputError(
            f"the channel of an edge is {kind}",
            expected="a channel, such as SameModelCacheChannel(), or the name of one",
        )
    if given:
        raise InputError(
            f"{', '.join(given)} given beside a channel that has options of its own",
            expected=f"{kind}({', '.join(f'{name}=…' for name in given)})",
        )
    lacking = [
        name for name in ("name", "carries_state", "share", "as_") if not hasattr(channel, name)
    ]
    if lacking:
        raise InputError(
            f"{kind} has no {lacking[0]}",
            expected="a channel with name, carries_state, share and as_",
            fix=f"give {kind} what the page on channels shows",
        )
    taken = {"auto", *(channel_class.name for channel_class in OURS)}
    if type(channel) not in OURS and channel.name in taken:
        raise InputError(
            f"{kind} is called {channel.name!r}, as a channel of the package",
            expected=f"a name other than {', '.join(sorted(taken))}",
            fix=f"call {kind} by a name of its own",
        )
    options: dict[str, Any] = {"channel": channel.name, "share": channel.share, "as": channel.as_}
    if type(channel) not in OURS:
        return options
    if isinstance(channel, SameModelCacheChannel | ProjectedCacheChannel):
        options["repair"] = _repair_of(channel)
    if isinstance(channel, SameModelCacheChannel) and channel.layer_ranges is not None:
        options["recompute"] = channel.layer_ranges
    if isinstance(channel, ProjectedCacheChannel):
        options["fuse"] = channel.mode == "fuse"
    return options


def _repair_of(channel: SameModelCacheChannel | ProjectedCacheChannel) -> dict[str, float] | None:
    """The keys of ``repair`` that a channel's options stand for."""
    if isinstance(channel, SameModelCacheChannel):
        if channel.budget is not None:
            return {"budget": channel.budget}
        if channel.deviation:
            return {"sink": channel.sink, "deviation": channel.deviation}
    return {"sink": channel.sink} if channel.sink else None


def checked_spec(data: Mapping[str, Any]) -> WorkflowSpec:
    """The spec of plain data, or a `WorkflowError` with all that is wrong with it."""
    try:
        return WorkflowSpec.model_validate(data)
    except ValidationError as error:
        raise WorkflowError([problem for _, problem in schema_problems(error)]) from None


def check_ends(
    spec: WorkflowSpec, channel: Channel | str, models: Mapping[str, AgentModel]
) -> None:
    """Ask the channel of the last edge, where both models are loaded and it must not fall back."""
    edge = spec.edges[-1]
    ends = [models.get(spec.agents[name].model) for name in (edge.from_, edge.to)]
    if isinstance(channel, Channel) and edge.fallback == "error" and ends[0] and ends[1]:
        channel.check(ends[0], ends[1])
