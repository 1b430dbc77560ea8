"""Edges that Python code connects: a channel object as the keys of an edge, and back in its place."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from unspoken.agents._problems import schema_problems
from unspoken.agents.model import LocalModel
from unspoken.agents.spec import WorkflowSpec
from unspoken.channels.base import Channel
from unspoken.channels.errors import InputError, WorkflowError
from unspoken.channels.projected import ProjectedCacheChannel
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

__all__ = ["OURS", "check_ends", "checked_spec", "edge_options", "with_edge"]

OURS: tuple[type[Channel], ...] = (TextChannel, SameModelCacheChannel, ProjectedCacheChannel)
"""The channels that a file can name."""


def with_edge(
    spec: WorkflowSpec, edge: Mapping[str, Any], own: Mapping[int, Channel]
) -> WorkflowSpec:
    """A spec with one more edge; to the schema, channels of other classes are text."""
    plain = spec.model_dump(by_alias=True, warnings=False)
    edges = [*plain["edges"], edge]
    edges = [one | {"channel": "text"} if n in own else one for n, one in enumerate(edges)]
    checked = checked_spec({**plain, "edges": edges})
    named = [
        one.model_copy(update={"channel": own[n].name}) if n in own else one
        for n, one in enumerate(checked.edges)
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
    taken = {"auto", *(one.name for one in OURS)}
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
        options["repair"] = {"sink": channel.sink}
    if isinstance(channel, SameModelCacheChannel) and channel.deviation:
        options["repair"]["deviation"] = channel.deviation
    elif options.get("repair") == {"sink": 0}:
        options["repair"] = None
    if isinstance(channel, SameModelCacheChannel) and channel.groups is not None:
        options["recompute"] = channel.groups
    if isinstance(channel, ProjectedCacheChannel):
        options["fuse"] = channel.mode == "fuse"
    return options


def checked_spec(data: Mapping[str, Any]) -> WorkflowSpec:
    """The spec of plain data, or a `WorkflowError` with all that is wrong with it."""
    try:
        return WorkflowSpec.model_validate(data)
    except ValidationError as error:
        raise WorkflowError([problem for _, problem in schema_problems(error)]) from None


def check_ends(
    spec: WorkflowSpec, channel: Channel | str, models: Mapping[str, LocalModel]
) -> None:
    """Ask the channel of the last edge, where both models are loaded and it must not fall back."""
    edge = spec.edges[-1]
    ends = [models.get(spec.agents[name].model) for name in (edge.from_, edge.to)]
    if isinstance(channel, Channel) and edge.fallback == "error" and ends[0] and ends[1]:
        channel.check(ends[0], ends[1])
