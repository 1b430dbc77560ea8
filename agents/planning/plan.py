"""What is planned for a workflow: a channel for every edge, and why."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from unspoken.agents.planning.forecast import Forecast
from unspoken.agents.spec.spec import Share
from unspoken.channels.finetunes.recompute import LayerRanges

if TYPE_CHECKING:
    from unspoken.channels.base import Channel, Fallback, Mode
    from unspoken.channels.errors import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgePlan:
    """What is planned for one edge.

    Attributes:
        number: Its number in the workflow.
        sharer: Who publishes.
        receiver: Who reads.
        asked: The channel the workflow names.
        channel: The channel it gets.
        share: What is published.
        mode: ``text``, ``continuation``, ``splice``, ``recompute``, ``projected``, ``fused`` or
            ``custom``.
        place: Which of its receiver's messages it is, from 1, before the prompt in its first turn;
            None where the prompt itself places it.
        reason: Why so, in a sentence for people.
        fallback: The cache channel that the workflow names and that cannot serve, or None.
        advice: What would make it faster, empty for nothing.
        tokens: Tokens of the message where they are known.
        repaired: Most first tokens of a spliced message that are computed again; None for other
            messages, and where ``deviation`` chooses the tokens during the run.
        bytes_per_token: Bytes of state a message token brings; 0 for text.
        retention: Least share of a message that a bridge keeps by its audit; None without one.
        native_layers: Layers the receiver runs itself over a projected message.
        unfitted: Whether the bridge is still to be fitted, so that nothing says yet if it serves.
        recompute: Ranges of layers, as [first, last + 1], that the receiver recomputes of a
            fine-tune's message; else None.
        kl: The upper bound of the profile's KL, in nats a token.
        hops: Inexact hand-overs in a row that the message came through, this one included; 0 where
            it is exact. Loops may add to them during the run.
    """

    number: int
    sharer: str
    receiver: str
    asked: str
    channel: str
    share: Share
    mode: "Mode"
    reason: str
    place: int | None = None
    advice: str = ""
    tokens: int | None = None
    repaired: int | None = None
    bytes_per_token: int = 0
    retention: float | None = None
    native_layers: int = 0
    unfitted: bool = False
    recompute: LayerRanges | None = None
    kl: float | None = None
    hops: int = 0
    fallback: "Fallback | None" = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plan:
    """The plan of a workflow.

    Attributes:
        workflow: Its name.
        edges: One entry per edge, in the workflow's order.
        channels: The channel of every edge, by number.
        leading: Edges whose messages come first in their receiver's context, by agent, where
            ``order: auto`` puts them there.
        notes: What is unusual about a model's template, by model.
        warnings: What the workflow's templates leave out of a text.
        inner: The plans of its agents that are workflows, by agent.
        forecast: What a run is expected to take; None without all inputs, and on a machine where
            its models were not measured.
    """

    workflow: str
    edges: tuple[EdgePlan, ...]
    channels: Mapping[int, "Channel"]
    leading: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    warnings: "tuple[Problem, ...]" = ()
    inner: "Mapping[str, Plan]" = field(default_factory=dict)
    forecast: Forecast | None = None

    @property
    def unfitted(self) -> tuple[int, ...]:
        """Edges, by number, that need a bridge fitted before the plan can run."""
        return tuple(edge.number for edge in self.edges if edge.unfitted)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as ``unspoken plan --json`` prints it."""
        rows = []
        for edge in self.edges:
            data = asdict(edge)
            row = {"from": data.pop("sharer"), "to": data.pop("receiver"), **data}
            if self.forecast is not None:
                expected = self.forecast.edges[edge.number]
                row |= {
                    "predicted_tokens": expected.tokens,
                    "predicted_seconds": expected.seconds,
                    "predicted_bytes": expected.bytes,
                }
            rows.append(row)
        forecast = {} if self.forecast is None else self.forecast.to_dict()
        return {
            "workflow": self.workflow,
            "edges": rows,
            **forecast,
            "notes": {name: list(notes) for name, notes in self.notes.items() if notes},
            "warnings": [f"{warning.where}: {warning.message}" for warning in self.warnings],
            **(
                {"inner": {name: plan.to_dict() for name, plan in self.inner.items()}}
                if self.inner
                else {}
            ),
        }
