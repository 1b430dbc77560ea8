"""How fast a model computes on this machine, and how long a forward of it takes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from unspoken.agents.planning.forecast import Calibration

FORMAT = 1

Points = tuple[tuple[int, float], ...]
"""Sizes, ascending, and the seconds of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a model's computations take, in seconds.

    Attributes:
        prefill: A forward of so many new tokens in an empty context.
        behind: What each token that stands before a new one adds to that.
        decode: A step of so many turns with short contexts.
        behind_step: What each token of a context adds to its turn's step.
        reuse: To put a token's state in place as it is.
        splice: To rotate a token's keys to another position besides.
        packet: To write a token's state into a packet.
        project: By the digest of a pair, to map a token's state by its bridge.
        batches: Whether turns are computed in one forward.
        calibration: When and where this was measured.
    """

    prefill: Points
    behind: float
    decode: Points
    behind_step: float
    reuse: float
    splice: float
    packet: float
    project: dict[str, float] = field(default_factory=dict)
    batches: bool
    calibration: Calibration

    def forward(
        self, prefills: Sequence[tuple[float, float]], steps: Sequence[float], drafts: float = 0.0
    ) -> float:
        """Seconds of one round of this model.

        Args:
            prefills: Per turn that reads, its new tokens and those before them.
            steps: Per turn that writes, the tokens of its context.
            drafts: Tokens that are guessed besides.
        """
        seconds = sum(new * before * self.behind for new, before in prefills)
        seconds += sum(steps) * self.behind_step
        alone = _at(self.decode, len(steps)) if steps else 0.0
        alone += _at(self.prefill, len(steps) + drafts) - _at(self.prefill, len(steps))
        if not prefills:
            return seconds + alone
        if not self.batches:
            return seconds + alone + sum(_at(self.prefill, new) for new, _ in prefills)
        new = sum(new for new, _ in prefills)
        # Steps beside a prefill read the same weights: what is left is their logits and contexts.
        beside = max(alone - _at(self.prefill, len(steps)), 0.0) if steps else 0.0
        return seconds + beside + _at(self.prefill, new + len(steps))

    def read(self, new: float, before: float = 0) -> float:
        """Seconds to compute some tokens more beside others of a prefill."""
        (less, low), (more, high) = self.prefill[-2:]
        each = (high - low) / (more - less)
        return new * (max(each, 0.0) + before * self.behind)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self | None:
        """A pace of plain data; None where it is of another format or broken."""
        try:
            if data.pop("format") != FORMAT:
                return None
            pace = cls(
                prefill=_points(data.pop("prefill")),
                decode=_points(data.pop("decode")),
                calibration=Calibration(**data.pop("calibration")),
                **data,
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return pace if len(pace.prefill) > 1 and len(pace.decode) > 1 else None


def _points(data: Any) -> Points:
    return tuple((int(size), float(seconds)) for size, seconds in data)


def _at(points: Points, size: float) -> float:
    """Seconds of a size: on the line between its neighbours, or on the last line beyond."""
    if size <= points[0][0]:
        return points[0][1]
    last = len(points) - 1
    upper = next((n for n, (more, _) in enumerate(points) if size <= more), last)
    (less, low), (more, high) = points[upper - 1], points[upper]
    return low + max(high - low, 0.0) * (size - less) / (more - less)
