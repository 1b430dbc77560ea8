"""Which channel each edge gets, and why: EXPLAIN for a workflow."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from unspoken.agents.outline import Piece, outline
from unspoken.agents.spec import EdgeSpec, Share, WorkflowSpec
from unspoken.channels.errors import ChannelError, ModelSupportError, Problem, WorkflowError
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

if TYPE_CHECKING:
    from unspoken.agents.model import LocalModel
    from unspoken.channels.base import Channel

__all__ = ["EdgePlan", "Plan", "make_channel", "plan_workflow"]


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
        mode: ``text``, ``continuation`` or ``splice``.
        reason: Why so, in a sentence.
        advice: What would make it faster, empty for nothing.
        tokens: Tokens of the message where they are known.
        bytes_per_token: Bytes of state a message token brings; 0 for text.
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


def make_channel(edge: EdgeSpec, name: str) -> "Channel":
    """The channel of a name with an edge's options."""
    if name == "text":
        return TextChannel(edge.share, edge.as_)
    return SameModelCacheChannel(edge.share, edge.as_, edge.repair.sink if edge.repair else 0)


def plan_workflow(
    spec: WorkflowSpec,
    models: Mapping[str, "LocalModel"],
    inputs: Mapping[str, object] | None = None,
) -> Plan:
    """Choose every edge's channel.

    Args:
        spec: A valid workflow.
        models: The loaded model of every agent, by agent.
        inputs: Input values, where they are known; token counts need them.

    Raises:
        WorkflowError: An edge with ``fallback: error`` whose channel cannot serve it.
    """
    contexts = {name: outline(spec, name) for name in spec.agents}
    edges, channels, problems = [], {}, []
    for number, edge in enumerate(spec.edges):
        refusal = _refusal(spec, number, contexts, models)
        if refusal is not None and edge.channel == "same_model_cache" and edge.fallback == "error":
            problems.append(
                Problem(
                    refusal, f"edges[{number}].channel", fix="use channel: text, or fallback: text"
                )
            )
            continue
        name = "text" if edge.channel == "text" or refusal is not None else "same_model_cache"
        channels[number] = make_channel(edge, name)
        edges.append(_plan_edge(spec, number, name, refusal, contexts, models, inputs))
    if problems:
        raise WorkflowError(problems)
    notes = {spec.agents[name].model: _notes(model) for name, model in models.items()}
    return Plan(spec.name, tuple(edges), channels, notes)


def _notes(model: "LocalModel") -> tuple[str, ...]:
    plain = (
        ("it brings no chat template: turns are plain paragraphs",) if model.template.plain else ()
    )
    return plain + model.template.notes


def _refusal(
    spec: WorkflowSpec,
    number: int,
    contexts: Mapping[str, Sequence[Piece]],
    models: Mapping[str, "LocalModel"],
) -> str | None:
    """Why no cache can cross this edge, or None."""
    edge = spec.edges[number]
    if edge.channel == "text":
        return None
    if spec.agents[edge.from_].for_each is not None:
        return f"{edge.from_} runs once per item, and its items have contexts of their own"
    try:
        make_channel(edge, "same_model_cache").check(models[edge.from_], models[edge.to])
    except ChannelError as error:
        return error.found
    if _mode(spec, number, contexts)[0] == "splice" and not _shifts_keys(models[edge.to]):
        return (
            "this model's keys cannot be moved, and the message stands elsewhere than at its sharer"
        )
    return None


def _shifts_keys(model: "LocalModel") -> bool:
    try:
        return model.shifts_keys
    except ModelSupportError:
        return False


def _plan_edge(
    spec: WorkflowSpec,
    number: int,
    name: str,
    refusal: str | None,
    contexts: Mapping[str, Sequence[Piece]],
    models: Mapping[str, "LocalModel"],
    inputs: Mapping[str, object] | None,
) -> EdgePlan:
    edge = spec.edges[number]
    model = models[edge.from_]
    mode, reason, advice = "text", "", ""
    if name != "text":
        mode, reason, advice = _mode(spec, number, contexts)
    elif edge.channel == "text":
        reason = "the workflow asks for text"
    else:
        reason = refusal or ""
    share = spec.share_of(edge)
    size = 0 if name == "text" else model.geometry.bytes_per_token(model.dtype.itemsize)
    return EdgePlan(
        number,
        edge.from_,
        edge.to,
        edge.channel,
        name,
        share,
        mode,
        reason,
        advice,
        _known_tokens(spec, edge, share, model, inputs),
        size,
    )


def _mode(
    spec: WorkflowSpec, number: int, contexts: Mapping[str, Sequence[Piece]]
) -> tuple[str, str, str]:
    """Whether the same pieces stand before and in the message at both ends."""
    edge = spec.edges[number]
    theirs, ours = contexts[edge.from_], contexts[edge.to]
    last = max((index for index, piece in enumerate(ours) if piece.edge == number), default=None)
    if last is None:
        return (
            "splice",
            "the prompt changes the message's words, so the receiver reads them anew",
            "",
        )
    for left, right in zip(theirs, ours[: last + 1], strict=False):
        if left.key != right.key:
            return _explain_splice(spec, number, left, right)
    if len(theirs) <= last:
        return "splice", f"{edge.to} has more before the message than {edge.from_}", ""
    return (
        "continuation",
        f"same weights, and the same tokens stand before the message at {edge.from_} and {edge.to}",
        "",
    )


def _explain_splice(
    spec: WorkflowSpec, number: int, left: Piece, right: Piece
) -> tuple[str, str, str]:
    edge = spec.edges[number]
    reason = (
        f"same weights, but {left.label} at {edge.from_} stands where {edge.to} has {right.label}"
    )
    advice = ""
    if "system" in (left.kind, right.kind):
        advice = (
            "put the instructions into the prompt, and leave the system prompt out at both ends"
        )
    elif right.edge not in (None, number):
        advice = "let this edge come first, or share the whole context"
    return "splice", reason, advice


def _known_tokens(
    spec: WorkflowSpec,
    edge: EdgeSpec,
    share: Share,
    model: "LocalModel",
    inputs: Mapping[str, object] | None,
) -> int | None:
    """Tokens of a shared prompt that depends on inputs alone."""
    from unspoken.agents.templates import references, render

    prompt = spec.agents[edge.from_].prompt
    roots = {reference.root for reference in references(prompt)}
    if share != "prompt" or inputs is None or roots - {"inputs"}:
        return None
    return len(model.codec.encode_words(render(prompt, {"inputs": dict(inputs)})))
