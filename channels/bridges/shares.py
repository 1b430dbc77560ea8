"""Shares of right answers, and how sure they are."""

from collections.abc import Sequence
from math import sqrt

import torch

__all__ = ["paired", "wilson"]

DRAWS = 2000


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927)."""
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return middle - half, middle + half


def paired(
    one: Sequence[bool], other: Sequence[bool], *, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float, float]:
    """Mean difference over the same rows, and its 95 % bootstrap interval."""
    gaps = torch.tensor(one, dtype=torch.float64) - torch.tensor(other, dtype=torch.float64)
    chosen = torch.randint(
        len(gaps), (draws, len(gaps)), generator=torch.Generator().manual_seed(seed)
    )
    ends = gaps[chosen].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(gaps.mean()), float(ends[0]), float(ends[1])
