"""What a run was begun with, and how that differs from what it would go on with."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from blake3 import blake3

from unspoken.agents.models.base import AgentModel
from unspoken.agents.planning.plan import EdgePlan, Plan
from unspoken.agents.runs.records import Origin, StoredRun
from unspoken.agents.spec.spec import WorkflowSpec, dump
from unspoken.channels.base import Channel
from unspoken.channels.errors import StoreError
from unspoken.channels.message import Message
from unspoken.channels.storage.side import running_version

MOST_SHOWN = 8

_FREE = ("description", "timeout", "memory")
"""What of a workflow changes nothing that it writes."""

_SECRET = ("env", "headers")
"""What of a server of tools may be a password, and decides nothing that was written."""

NOT_KEPT = "not kept"
"""Stands in a store for each value that may be a password."""

_LONGEST = 60


def digest_of_message(message: Message) -> str:
    """Of a message that was published elsewhere, without its state."""
    parts = [(segment.role, segment.ids, segment.content) for segment in message.segments]
    told = repr((message.sharer, message.whole, message.context, parts, asdict(message.identity)))
    return blake3(told.encode()).hexdigest(length=16)


def origin_of(
    spec: WorkflowSpec,
    models: Mapping[str, AgentModel],
    inputs: Mapping[str, object],
    received: Mapping[str, Message],
    plan: Plan,
    file: str = "",
) -> Origin:
    """What a run is begun with.

    Args:
        spec: The workflow.
        models: The model of every agent, by agent.
        inputs: Checked input values.
        received: Messages of agents that spoke elsewhere, by agent.
        plan: The workflow's plan.
        file: The workflow's file, where there is one.
    """
    return Origin(
        version=running_version(),
        workflow=_without_secrets(spec),
        models={
            name: {**asdict(model.identity), "dtype": str(model.dtype)}
            for name, model in models.items()
        },
        inputs=inputs,
        received={name: digest_of_message(message) for name, message in received.items()},
        edges={
            f"{edge.number} {edge.sharer}->{edge.receiver}": _told(edge, plan)
            for edge in plan.edges
        },
        file=file,
    )


def _without_secrets(spec: WorkflowSpec) -> dict[str, Any]:
    """The workflow as a store may hold it."""
    data = {key: value for key, value in dump(spec).items() if key not in _FREE}
    _hide(data)
    return data


def _hide(workflow: dict[str, Any]) -> None:
    """Put what may be a password out of a workflow, and out of those inside of it."""
    for server in workflow.get("mcp_servers", {}).values():
        for key in _SECRET:
            if key in server:
                server[key] = dict.fromkeys(server[key], NOT_KEPT)
    for agent in workflow["agents"].values():
        if "workflow" in agent:
            _hide(agent["workflow"])


def _told(edge: EdgePlan, plan: Plan) -> dict[str, str]:
    told = told_of_channel(plan.channels[edge.number])
    return {
        "channel": edge.channel,
        "mode": edge.mode,
        "settings": blake3(told.encode()).hexdigest(length=8),
    }


def told_of_channel(channel: Channel) -> str:
    """What of a channel decides what a receiver reads: its kind, its settings and its bridge."""
    told: list[object] = [type(channel).__qualname__]
    given: Any = channel
    for one in fields(given) if is_dataclass(given) else ():
        value = getattr(given, one.name)
        manifest = getattr(value, "manifest", None)
        told.append((one.name, value if manifest is None else _told_of_bridge(manifest)))
    return repr(told)


def _told_of_bridge(manifest: object) -> str:
    return getattr(manifest, "digest", "") or repr(manifest)


def differences(then: Origin, now: Origin) -> list[str]:
    """What of a run is not as it was, a line each."""
    lines = []
    if then.version != now.version:
        lines.append(f"unspoken was {then.version}, and is {now.version}")
    if then.session != now.session:
        lines.append(f"session was {_named(then.session)}, and is {_named(now.session)}")
    parts = (
        ("workflow", then.workflow, now.workflow),
        ("model of agent", then.models, now.models),
        ("input", then.inputs, now.inputs),
        ("message received for", then.received, now.received),
        ("edge", then.edges, now.edges),
        ("conversation of agent", then.conversations, now.conversations),
    )
    for title, old, new in parts:
        lines += [f"{title} {line}" for line in changed(old, new, ())]
    return lines


def require_same(run: StoredRun, now: Origin, *, anyway: bool) -> bool:
    """Refuse to go on with a run as another one; whether it is another one.

    Args:
        run: The run as it was.
        now: What it would go on with.
        anyway: Whether it may go on so. Turns that read something else are then run again.

    Raises:
        StoreError: It differs, or an agent that has had a turn is not there any more.
    """
    lines = differences(run.origin, now)
    if not lines:
        return False
    there, gone = now.workflow.get("agents", {}), run.origin.workflow.get("agents", {})
    missing = [name for name in gone if name not in there] if run.turns else []
    if anyway and not missing:
        return True
    shown = "\n  ".join(lines[:MOST_SHOWN])
    more = f"\n  and {len(lines) - MOST_SHOWN} more" if len(lines) > MOST_SHOWN else ""
    fix = "go on with --anyway (in Python, anyway=True): turns that read something else run again"
    raise StoreError(
        f"run {run.id} was begun with something else:\n  {shown}{more}",
        kind="different",
        expected="the version, workflow, models and inputs that it was begun with",
        fix="begin another run" if missing else f"begin another run, or {fix}",
    )


def changed(old: Any, new: Any, path: tuple[str, ...]) -> Iterator[str]:
    """What differs between two values of plain data, by its path."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in {**old, **new}:
            yield from changed(old.get(key), new.get(key), (*path, str(key)))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (left, right) in enumerate(zip(old, new, strict=True)):
            yield from changed(left, right, (*path, str(number)))
    elif old != new and not (old != old and new != new):  # not a number, both times
        yield f"{'.'.join(path)} was {_shown(old)}, and is {_shown(new)}"


def _named(session: str) -> str:
    return repr(session) if session else "none"


def _shown(value: object) -> str:
    if value is None:
        return "not there"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
