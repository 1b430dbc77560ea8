"""What can cross an edge, as the planner decides it, and the channel that follows from it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unspoken.agents.spec.spec import EdgeSpec
from unspoken.channels.errors import ModelSupportError
from unspoken.channels.finetunes.recompute import Groups
from unspoken.channels.projected import Bridge, ProjectedCacheChannel
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

if TYPE_CHECKING:
    from unspoken.agents.models.model import LocalModel
    from unspoken.channels.base import Channel

__all__ = ["Verdict", "make_channel", "shifts_keys"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What can cross an edge.

    Attributes:
        mode: ``text``, ``continuation``, ``splice``, ``recompute``, ``projected``, ``fused`` or ``own``.
        reason: Why so, in a sentence.
        expected: What a cache would have needed, where it is text.
        advice: What would make it faster, empty for nothing.
        bridge: The bridge of a projected edge.
        unfitted: Whether a bridge has to be fitted before this is known.
        groups: Layers that the receiver computes anew of a message from other weights of its base.
        grounds: What speaks for these groups.
        max_kl: The most that the profile's KL may be, by its interval; None without a profile.
        first_only: Whether these groups are for messages alone that stand where they stood at their sharer.
        own: A channel of the workflow's own class, which carries the message.
    """

    mode: str
    reason: str
    expected: str = ""
    advice: str = ""
    bridge: Bridge | None = None
    unfitted: bool = False
    groups: Groups | None = None
    grounds: str = ""
    max_kl: float | None = None
    first_only: bool = False
    own: "Channel | None" = None

    @property
    def channel(self) -> str:
        """Name of the channel that carries it."""
        if self.own is not None:
            return self.own.name
        names = {"text": "text", "projected": "projected_cache", "fused": "projected_cache"}
        return names.get(self.mode, "same_model_cache")


def make_channel(
    edge: EdgeSpec,
    name: str,
    bridge: Bridge | None = None,
    verdict: "Verdict | None" = None,
) -> "Channel":
    """The channel of a name with an edge's options; without its bridge a projected one is text."""
    if verdict is not None and verdict.own is not None:
        return verdict.own
    sink = edge.repair.sink if edge.repair else 0
    if name == "same_model_cache":
        deviation = edge.repair.deviation if edge.repair else 0.0
        across = verdict or Verdict("splice", "")
        return SameModelCacheChannel(
            edge.share,
            edge.as_,
            sink,
            deviation,
            across.groups,
            across.grounds,
            across.first_only,
        )
    if bridge is not None:
        mode: Literal["prefix", "fuse"] = "fuse" if edge.fuse else "prefix"
        return ProjectedCacheChannel(bridge, edge.share, edge.as_, sink, mode)
    return TextChannel(edge.share, edge.as_)


def shifts_keys(model: "LocalModel") -> bool:
    """Whether a model's keys can be moved; not where nothing says how they are rotated."""
    try:
        return model.shifts_keys
    except ModelSupportError:
        return False
