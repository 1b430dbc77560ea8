"""Arms: one workflow, its agents and prompts as they are, and its messages carried otherwise.

Every arm asks the same agents the same things. What differs is how the messages on the edges go, or
whose they are. An arm that replaces messages leaves out the agents that nobody hears then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import networkx as nx

from unspoken.agents.prompts.jinja import references
from unspoken.agents.spec.edge import EdgeSpec
from unspoken.agents.spec.graph import asks_people, build_graph, forward_graph
from unspoken.agents.spec.problems import listed, suggest
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.agents.workflow import Workflow
from unspoken.channels.errors import InputError

REFERENCE = "text"
DEFAULT = ("text", "text+reuse", "plan", "alone", "stranger")

ARMS: Mapping[str, str] = {
    "text": "every message by text, read anew",
    "text+reuse": "by text, and an engine that goes on from any state that begins alike",
    "plan": "the workflow as it is",
    "continuation": "text, but for the edges that can continue a cache",
    "splice": "text, but for the edges that can splice a cache",
    "recompute": "text, but for the edges between fine-tunes",
    "bridge": "text, but for the edges with a bridge",
    "equal_time": "text, cut by words to what is read in the plan's time to the first token",
    "alone": "the agent without its messages",
}
"""Arms, and what becomes of the messages in each."""

CONTROLS: Mapping[str, str] = {
    "stranger": "text, with the messages of another context",
    "neighbour": "text, with the messages of another context about the same",
    "none": "text, with messages of no words",
    "everything_stranger": "text, with everything of another context",
    "again": "text once more: what differs is noise",
}
"""Controls, which say what a difference between arms means."""

TARGET_ALONE = frozenset({"alone", "none", "equal_time"})
"""Arms whose other agents take no turn, so what a run takes is not that of the workflow."""

FORCED: Mapping[str, tuple[Literal["same_model_cache", "projected_cache"], frozenset[str]]] = {
    "continuation": ("same_model_cache", frozenset({"continuation"})),
    "splice": ("same_model_cache", frozenset({"splice"})),
    "recompute": ("same_model_cache", frozenset({"recompute"})),
    "bridge": ("projected_cache", frozenset({"projected", "fused"})),
}
"""The channel that is asked for, and the modes of it that are meant."""

Whose = Literal["own", "stranger", "neighbour"]
Messages = Literal["sent", "left out", "empty", "cut"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm.

    Attributes:
        name: Its name.
        flow: The workflow as it is run.
        session: Whether its states stay for later turns of the run.
        whose: Whose inputs the agents before the target read.
        whole: Whether the target reads them too.
        messages: What becomes of the target's messages.
    """

    name: str
    flow: Workflow
    session: bool = False
    whose: Whose = "own"
    whole: bool = False
    messages: Messages = "sent"

    @property
    def what(self) -> str:
        """What it is, in a few words."""
        return ARMS.get(self.name) or CONTROLS[self.name]


def target_of(spec: WorkflowSpec, named: str | None) -> str:
    """The agent whose answers count: the one that is named, else the last one.

    Raises:
        InputError: There is no such agent, it writes nothing, or several are last.
    """
    if named is not None and named not in spec.agents:
        fix = suggest(named, spec.agents)
        raise InputError(f"there is no agent {named!r}", expected=listed(spec.agents), fix=fix)
    forward = forward_graph(build_graph(spec))
    last = [name for name in spec.agents if not forward.out_degree(name)]
    if named is None and len(last) > 1:
        read = {ref.root for text in spec.outputs.values() for ref in references(text)}
        last = [name for name in last if name in read] or last
    if named is None and len(last) != 1:
        raise InputError(
            f"{len(last)} agents are last", expected=listed(last), fix="name one with --agent"
        )
    name = named if named is not None else last[0]
    if spec.agents[name].generate is None:
        raise InputError(
            f"{name!r} writes nothing, so it has no answer",
            expected="an agent that writes",
            fix="name one with --agent",
        )
    return name


def before(spec: WorkflowSpec, target: str) -> frozenset[str]:
    """The agents whose words reach the target."""
    return frozenset(nx.ancestors(build_graph(spec), target)) - {target}


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Arms by name, with those that others need, each once; the reference first.

    Raises:
        InputError: There is no such arm.
    """
    known = {**ARMS, **CONTROLS}
    for name in names:
        if name not in known:
            raise InputError(
                f"there is no arm {name!r}", expected=listed(known), fix=suggest(name, known)
            )
    needed = [REFERENCE, *(["plan"] if "equal_time" in names else []), *names]
    return tuple(dict.fromkeys(needed))


def make_arms(flow: Workflow, names: Sequence[str], target: str) -> tuple[Arm, ...]:
    """The arms of a workflow whose models are loaded.

    Args:
        flow: The workflow.
        names: Their names.
        target: The agent whose answers count.

    Raises:
        InputError: An arm that this workflow cannot have.
    """
    spec = flow.spec
    remembers = [name for name, agent in spec.agents.items() if agent.memory == "session"]
    if remembers:
        raise InputError(
            f"{remembers[0]!r} goes on from other runs, and rows are to be independent",
            expected="agents with memory: run",
            fix="leave `memory: session` out in a copy of the file",
        )
    asks = [name for name, agent in spec.agents.items() if agent.ask is not None]
    asks += [f"{edge.from_} -> {edge.to}" for edge in spec.edges if edge.ask is not None]
    inner = ((name, agent.workflow) for name, agent in spec.agents.items())
    asks += [name for name, one in inner if one is not None and asks_people(one)]
    if asks:
        raise InputError(
            f"{asks[0]} asks a person, in every row and arm",
            expected="a workflow that goes on by itself",
            fix="leave `ask` out in a copy of the file",
        )
    return tuple(_make(flow, name, target) for name in check_names(names))


def usual_arms(
    flow: Workflow, target: str, contexts: int
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The default arms that a workflow can have, and why it cannot have the others.

    Args:
        flow: The workflow; its models are loaded.
        target: The agent whose answers count.
        contexts: Of how many contexts the rows are.
    """
    left_out = {}
    for name in DEFAULT:
        try:
            _make(flow, name, target)
        except InputError as error:
            left_out[name] = error.found
    if contexts < 2:
        left_out.setdefault("stranger", "all rows are of one context")
    return tuple(name for name in DEFAULT if name not in left_out), left_out


def _make(flow: Workflow, name: str, target: str) -> Arm:
    if name == "plan":
        return Arm(name=name, flow=flow)
    if name in FORCED:
        return Arm(name=name, flow=_forced(flow, name))
    plain = flow.with_spec(by_text(flow.spec))
    if name in ("text", "again"):
        return Arm(name=name, flow=plain)
    if name == "text+reuse":
        return Arm(name=name, flow=plain, session=True)
    _require_messages(flow.spec, name, target)
    if name == "everything_stranger":
        return Arm(name=name, flow=plain, whose="stranger", whole=True)
    if name in ("stranger", "neighbour"):
        whose: Whose = "stranger" if name == "stranger" else "neighbour"
        return Arm(name=name, flow=plain, whose=whose)
    messages: dict[str, Messages] = {"alone": "left out", "none": "empty", "equal_time": "cut"}
    heard = flow.with_spec(by_text(heard_alone(flow.spec, target)))
    return Arm(name=name, flow=heard, messages=messages[name])


def by_text(spec: WorkflowSpec) -> WorkflowSpec:
    """The workflow with text on every edge."""
    return _with_edges(spec, [_asking(edge, "text") for edge in spec.edges])


def heard_alone(spec: WorkflowSpec, target: str) -> WorkflowSpec:
    """An agent and those that it hears, which take no turns: their messages are received."""
    first: dict[str, EdgeSpec] = {}
    for edge in spec.edges:
        if edge.to == target:  # of two from one agent, the first: its words come once
            first.setdefault(edge.from_, edge.model_copy(update={"when": None}))
    blank = {"prompt": "(elsewhere)", "system": None, "for_each": None, "tools": (), "min_calls": 0}
    agents = {name: spec.agents[name].model_copy(update=blank) for name in first} | {
        target: spec.agents[target]
    }
    kept = spec.model_copy(update={"agents": agents, "outputs": {}})
    return _with_edges(kept, list(first.values()))


def _with_edges(spec: WorkflowSpec, edges: Sequence[EdgeSpec]) -> WorkflowSpec:
    return spec.model_copy(update={"edges": type(spec.edges)(edges)})


def _asking(edge: EdgeSpec, channel: str) -> EdgeSpec:
    """An edge that asks for a channel, and goes by text where that cannot serve."""
    fuse = edge.fuse and channel == "projected_cache"
    return edge.model_copy(update={"channel": channel, "fallback": "text", "fuse": fuse})


def _forced(flow: Workflow, name: str) -> Workflow:
    """The workflow with one way to carry a cache, on all edges that can have it."""
    channel, modes = FORCED[name]
    asking = [_asking(edge, channel) for edge in flow.spec.edges]
    planned = flow.with_spec(_with_edges(flow.spec, asking)).plan().edges
    if not any(edge.mode in modes for edge in planned):
        reasons = "; ".join(f"{edge.sharer} -> {edge.receiver}: {edge.reason}" for edge in planned)
        raise InputError(
            f"no edge can have the arm {name!r}" + (f" ({reasons})" if reasons else ""),
            expected="an edge that can be carried so",
            fix=f"leave {name!r} out of the arms",
        )
    edges = [
        edge if edge_plan.mode in modes else _asking(edge, "text")
        for edge, edge_plan in zip(asking, planned, strict=True)
    ]
    return flow.with_spec(_with_edges(flow.spec, edges))


def _require_messages(spec: WorkflowSpec, name: str, target: str) -> None:
    """Refuse an arm about messages where the target has none, or hears them again in a loop."""
    fix = f"leave {name!r} out of the arms, or name another agent with --agent"
    edges = [edge for edge in spec.edges if edge.to == target]
    if not edges:
        raise InputError(
            f"{target!r} gets no message, so there is no arm {name!r}",
            expected="an agent with an edge to it",
            fix=fix,
        )
    if name in TARGET_ALONE and any(edge.loop for edge in edges):
        raise InputError(
            f"{target!r} is in a loop, so its messages depend on what it wrote itself",
            expected="an agent that no loop leads to",
            fix=fix,
        )
    if name == "equal_time" and any(spec.share_of(edge) == "context" for edge in edges):
        raise InputError(
            f"{target!r} gets whole turns, which cannot be cut by words",
            expected="edges that share output or prompt",
            fix=fix,
        )
