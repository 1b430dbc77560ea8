"""Where the fits of bridges and of their fusers stand."""

from collections.abc import Callable
from dataclasses import dataclass

from unspoken.channels.bridges.fit.validation import Scores

__all__ = ["FitProgress", "FitReport", "FuseProgress", "FuseReport"]


@dataclass(frozen=True, slots=True)
class FitProgress:
    """Where a fit stands.

    Attributes:
        stage: ``layers``, ``gram``, ``solve``, ``train`` or ``done``.
        fraction: Done of the stage, 0 to 1.
        loss: Training loss since the last report, where there is one.
        scores: The last held-out scores.
    """

    stage: str
    fraction: float
    loss: float | None = None
    scores: Scores | None = None


@dataclass(frozen=True, slots=True)
class FuseProgress:
    """Where a fit stands.

    Attributes:
        stage: ``gram``, ``train`` or ``done``.
        fraction: Done of the stage, 0 to 1.
        loss: Training loss since the last report, where there is one.
        gain: Per kind of lesson, the share of the receiver's own held-out loss that is gone.
    """

    stage: str
    fraction: float
    loss: float | None = None
    gain: dict[str, float] | None = None


FitReport = Callable[[FitProgress], None]
FuseReport = Callable[[FuseProgress], None]
