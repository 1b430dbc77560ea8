"""Which channel each edge gets, and why: EXPLAIN for a workflow."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from unspoken.agents.bridged import FindBridge
from unspoken.agents.compose import Turn
from unspoken.agents.finetuned import FindProfile
from unspoken.agents.outline import outline
from unspoken.agents.reuse import judge
from unspoken.agents.spec import EdgeSpec, Share, WorkflowSpec
from unspoken.agents.templates import references, render
from unspoken.agents.verdict import Verdict, make_channel
from unspoken.channels.errors import InputError, Problem, WorkflowError
from unspoken.channels.packed import packed_bytes_per_token
from unspoken.channels.recompute import Groups, bytes_per_token, check_groups

if TYPE_CHECKING:
    from unspoken.agents.model import LocalModel
    from unspoken.channels.base import Channel
    from unspoken.channels.projected import Bridge

__all__ = ["EdgePlan", "Plan", "plan_workflow"]


@dataclass(frozen=True, slots=True)
class EdgePlan:
    """What is planned for one edge.

    Attributes:
        number: Its number in the workflow.
        sharer: Who publishes.
        receiver: Who reads.
        asked: The channel the workflow names.
        channel: The channel it gets.
        share: What is published.
        mode: ``text``, ``continuation``, ``splice``, ``recompute``, ``projected``, ``fused`` or ``own``.
        reason: Why so, in a sentence.
        advice: What would make it faster, empty for nothing.
        tokens: Tokens of the message where they are known.
        bytes_per_token: Bytes of state a message token brings; 0 for text.
        retention: What a bridge's audit lets an edge count on; None without a bridge.
        native_layers: Layers the receiver runs itself over a projected message.
        unfitted: Whether the bridge is still to be fitted; only then is it known whether it serves.
        recompute: Groups of layers, as [first, last + 1], that the receiver computes anew of a message from other
            weights of its base; None where it is not that.
        kl: The most nats a token, by a profile's interval, that this leaves between it and its own reading.
    """

    number: int
    sharer: str
    receiver: str
    asked: str
    channel: str
    share: Share
    mode: str
    reason: str
    advice: str = ""
    tokens: int | None = None
    bytes_per_token: int = 0
    retention: float | None = None
    native_layers: int = 0
    unfitted: bool = False
    recompute: Groups | None = None
    kl: float | None = None

    @property
    def fell_back(self) -> bool:
        """Whether a cache was asked for by name and text was planned."""
        return self.asked not in ("auto", self.channel)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The plan of a workflow.

    Attributes:
        workflow: Its name.
        edges: One entry per edge, in the workflow's order.
        channels: The channel of every edge, by number.
        notes: What is unusual about a model's template, by model.
    """

    workflow: str
    edges: tuple[EdgePlan, ...]
    channels: Mapping[int, "Channel"]
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def unfitted(self) -> tuple[int, ...]:
        """Edges, by number, that need a bridge fitted before the plan can run."""
        return tuple(edge.number for edge in self.edges if edge.unfitted)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as ``unspoken plan --json`` prints it."""
        rows = []
        for edge in self.edges:
            data = asdict(edge)
            rows.append({"from": data.pop("sharer"), "to": data.pop("receiver"), **data})
        return {
            "workflow": self.workflow,
            "edges": rows,
            "notes": {name: list(notes) for name, notes in self.notes.items() if notes},
        }


def plan_workflow(
    spec: WorkflowSpec,
    models: Mapping[str, "LocalModel"],
    inputs: Mapping[str, object] | None = None,
    *,
    find_bridge: FindBridge = lambda sharer, receiver: None,
    bridges: Mapping[int, "Bridge"] | None = None,
    find_profile: FindProfile = lambda sharer, receiver: None,
    own: Mapping[int, "Channel"] | None = None,
) -> Plan:
    """Choose every edge's channel.

    Args:
        spec: A valid workflow.
        models: The loaded model of every agent, by agent.
        inputs: Input values, where they are known; token counts need them.
        find_bridge: Where bridges between two models are looked for.
        bridges: Bridges that the workflow itself names, by edge.
        find_profile: Where profiles of fine-tunes of one base are looked for.
        own: Channels of the workflow's own classes, by edge.

    Raises:
        WorkflowError: An edge with ``fallback: error`` whose channel cannot serve it, or layers that there are not.
    """
    contexts = {name: outline(spec, name) for name in spec.agents}
    edges, channels, problems = [], {}, []
    for number, edge in enumerate(spec.edges):
        problem = _impossible_layers(edge, number, models[edge.to])
        if problem is not None:
            problems.append(problem)
            continue
        given = (bridges or {}).get(number)
        mine = (own or {}).get(number)
        verdict = judge(spec, number, contexts, models, find_bridge, given, find_profile, mine)
        if verdict.mode == "text" and edge.channel != "text" and edge.fallback == "error":
            where, fix = f"edges[{number}].channel", "use channel: text, or fallback: text"
            fix = f"{verdict.advice}, or {fix}" if verdict.advice else fix
            problems.append(Problem(verdict.reason, where, verdict.expected, fix))
            continue
        channels[number] = make_channel(edge, verdict.channel, verdict.bridge, verdict)
        edges.append(_plan_edge(spec, number, verdict, models, inputs))
    if problems:
        raise WorkflowError(problems)
    notes = {spec.agents[name].model: _notes(model) for name, model in models.items()}
    return Plan(spec.name, tuple(edges), channels, notes)


def _impossible_layers(edge: EdgeSpec, number: int, receiver: "LocalModel") -> Problem | None:
    """Groups of layers that the receiver does not have: a mistake, and no reason to fall back."""
    if not isinstance(edge.recompute, tuple):
        return None
    try:
        check_groups(edge.recompute, len(receiver.geometry.layers))
    except InputError as error:
        return Problem(error.found, f"edges[{number}].recompute", error.expected, error.fix)
    return None


def _notes(model: "LocalModel") -> tuple[str, ...]:
    plain = "it brings no chat template: turns are plain paragraphs"
    return ((plain,) if model.template.plain else ()) + model.template.notes


def _plan_edge(
    spec: WorkflowSpec,
    number: int,
    verdict: Verdict,
    models: Mapping[str, "LocalModel"],
    inputs: Mapping[str, object] | None,
) -> EdgePlan:
    edge = spec.edges[number]
    model = models[edge.from_]
    bridge = verdict.bridge
    packed = edge.codec != "raw" and _brings_state(verdict)
    return EdgePlan(
        number,
        edge.from_,
        edge.to,
        edge.channel,
        verdict.channel,
        spec.share_of(edge),
        verdict.mode,
        f"{verdict.reason}; kept as {edge.codec}, so not exact" if packed else verdict.reason,
        verdict.advice,
        _known_tokens(spec, edge, model, inputs),
        _bytes_per_token(edge, verdict, model),
        None if bridge is None or verdict.mode == "fused" else bridge.earned,
        0 if bridge is None or verdict.mode == "fused" else bridge.native_layers,
        verdict.unfitted,
        verdict.groups,
        verdict.max_kl,
    )


def _brings_state(verdict: Verdict) -> bool:
    return verdict.channel != "text" if verdict.own is None else verdict.own.carries_state


def _bytes_per_token(edge: EdgeSpec, verdict: Verdict, model: "LocalModel") -> int:
    if not _brings_state(verdict):
        return 0
    if verdict.groups is not None:
        return bytes_per_token(model.geometry, model.dtype.itemsize, verdict.groups)
    return packed_bytes_per_token(edge.codec, model.geometry, model.dtype)


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
    turn = Turn(edge.as_, (render(prompt, {"inputs": dict(inputs or {})}),))
    return len(model.composer.compose([turn]).segments[-1].ids)
