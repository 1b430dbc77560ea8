"""What can cross an edge, as the planner decides it, and the channel that follows from it."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Literal

from unspoken.agents.planning.outline import OutlinePiece
from unspoken.agents.spec.spec import EdgeSpec, WorkflowSpec
from unspoken.channels.errors import ModelSupportError
from unspoken.channels.finetunes.recompute import LayerRanges
from unspoken.channels.projected import Bridge, ProjectedCacheChannel
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

if TYPE_CHECKING:
    from unspoken.agents.models.base import AgentModel
    from unspoken.channels.base import Channel, Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeEnds:
    """An edge of a workflow, and what is known of both its ends before anything ran.

    Attributes:
        spec: The workflow.
        number: The edge.
        sharer: The sharer's model.
        receiver: The receiver's model.
        sharer_context: Outline of the sharer's context.
        receiver_context: Outline of the receiver's context.
    """

    spec: WorkflowSpec
    number: int
    sharer: "AgentModel"
    receiver: "AgentModel"
    sharer_context: Sequence[OutlinePiece]
    receiver_context: Sequence[OutlinePiece]

    @property
    def edge(self) -> EdgeSpec:
        """What the workflow says of the edge."""
        return self.spec.edges[self.number]


@dataclass(frozen=True, slots=True)
class ChannelChoice:
    """What can cross an edge.

    Attributes:
        mode: ``text``, ``continuation``, ``splice``, ``recompute``, ``projected``, ``fused`` or
            ``custom``.
        reason: Why so, in a sentence.
        expected: What a cache would have needed, where it is text.
        advice: What would make it faster, empty for nothing.
        bridge: The bridge of a projected edge.
        unfitted: Whether a bridge has to be fitted before this is known.
        sink: First tokens of a spliced message to recompute, where the edge's repair leaves that to
            the planner; else None.
        layer_ranges: Layers that the receiver recomputes of a fine-tune's message.
        evidence: What speaks for these ranges, or for text where a cache would serve.
        max_kl: The upper bound of the profile's KL, in nats a token; None without a profile.
        prefix_only: Whether these ranges serve only a message that is not moved.
        custom: A channel of the workflow's own class, which carries the message.
    """

    mode: "Mode"
    reason: str
    _: KW_ONLY
    expected: str = ""
    advice: str = ""
    bridge: Bridge | None = None
    longest: int | None = None
    unfitted: bool = False
    sink: int | None = None
    layer_ranges: LayerRanges | None = None
    evidence: str = ""
    max_kl: float | None = None
    prefix_only: bool = False
    custom: "Channel | None" = None

    @property
    def channel(self) -> str:
        """Name of the channel that carries it."""
        if self.custom is not None:
            return self.custom.name
        names = {"text": "text", "projected": "projected_cache", "fused": "projected_cache"}
        return names.get(self.mode, "same_model_cache")


def make_channel(edge: EdgeSpec, choice: ChannelChoice) -> "Channel":
    """The channel of a choice, with an edge's options; text until its bridge is fitted."""
    if choice.custom is not None:
        return choice.custom
    sink = edge.repair.sink if edge.repair else 0
    sink = sink if choice.sink is None else choice.sink
    if choice.channel == "same_model_cache":
        spliced = choice.layer_ranges is None
        return SameModelCacheChannel(
            share=edge.share,
            as_=edge.as_,
            sink=sink,
            deviation=edge.repair.deviation if edge.repair else 0.0,
            budget=edge.repair.budget if edge.repair and spliced else None,
            layer_ranges=choice.layer_ranges,
            evidence=choice.evidence,
            prefix_only=choice.prefix_only,
        )
    if choice.bridge is None:
        return TextChannel(edge.share, edge.as_, evidence=choice.evidence)
    mode: Literal["prefix", "fuse"] = "fuse" if edge.fuse else "prefix"
    return ProjectedCacheChannel(
        choice.bridge, share=edge.share, as_=edge.as_, sink=sink, mode=mode, longest=choice.longest
    )


def shifts_keys(model: "AgentModel") -> bool:
    """Whether a model's keys can be moved; not where nothing says how they are rotated."""
    try:
        return model.shifts_keys
    except ModelSupportError:
        return False
