"""Where the fits of bridges and of their fusers stand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


class Validation(Protocol):
    """What a validation round says of a module."""

    @property
    def score(self) -> float:
        """What the best weights are chosen by."""

    def to_dict(self) -> Mapping[str, float]:
        """Its figures by name."""

    def describe(self) -> str:
        """Its figures in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitProgress:
    """Where a fit stands.

    Attributes:
        stage: ``layers``, ``sketch``, ``gram``, ``solve``, ``train`` or ``done``.
        fraction: Done of the stage, 0 to 1.
        loss: Training loss since the last report, where there is one.
        scores: What the last validation round says.
    """

    stage: str
    fraction: float
    loss: float | None = None
    scores: Validation | None = None


FitReport = Callable[[FitProgress], None]
