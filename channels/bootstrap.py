"""Intervals by the bootstrap, with the context as the unit: all its rows are drawn together.

Bias-corrected and accelerated (BCa; Efron 1987, "Better bootstrap confidence intervals").
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DRAWS = 4000
LEVEL = 0.95
SOUND = 0.975
"""Least share of the draws for which a figure must exist, for an interval to mean something."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its interval; None where there is none.

    Attributes:
        value: The figure on all rows.
        low: Lower bound of the 95 % bootstrap interval over rows.
        high: Upper bound.
    """

    value: float | None
    low: float | None
    high: float | None


NOTHING = Estimate(None, None, None)

Statistic = Callable[[Tensor], Tensor]
"""Gives a figure of the columns' means, (…, columns) to (…); NaN where there is none."""


def share(part: Tensor, whole: Tensor) -> Tensor:
    """One mean as a share of another; NaN where the other is not above zero."""
    return torch.where(whole > 0, part / whole, torch.nan)


def bca(values: Tensor, statistic: Statistic, *, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """A figure of means over contexts, with its 95 % interval.

    Where a draw has no figure it does not count. Where too many have none there is no interval.

    Args:
        values: A row per context, (contexts, columns).
        statistic: The figure.
        seed: Of the draws.
        draws: How many.
    """
    values = values.double().cpu()
    count = len(values)
    if not count:
        return NOTHING
    figure = statistic(values.mean(dim=0))
    if not bool(figure.isfinite()):
        return NOTHING
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (draws, count), generator=generator)
    times = torch.zeros(draws, count, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones(draws, count, dtype=torch.float64))
    figures = statistic(times @ values / count)
    figures = figures[figures.isfinite()]
    if count < 2 or len(figures) < SOUND * draws:
        return Estimate(float(figure), None, None)
    # Draws are sums of other orders: what only rounding parts is equal.
    near = (figures - figure).abs() <= 1e-12 * (1 + figure.abs())
    below = (figures < figure) & ~near
    bias = torch.special.ndtri(
        (below.double().mean() + near.double().mean() / 2).clamp(0.5 / draws, 1 - 0.5 / draws)
    )
    tail = (1 - LEVEL) / 2
    wanted = torch.special.ndtri(torch.tensor([tail, 1 - tail], dtype=torch.float64)) + bias
    places = torch.special.ndtr(bias + wanted / (1 - _acceleration(values, statistic) * wanted))
    low, high = torch.quantile(figures, places.clamp(0, 1)).tolist()
    return Estimate(float(figure), low, high)


def _acceleration(values: Tensor, statistic: Statistic) -> Tensor:
    """How the figure's spread changes with the figure, by leaving out one context each."""
    without = (values.sum(dim=0) - values) / (len(values) - 1)
    figures = statistic(without)
    figures = figures[figures.isfinite()]
    gaps = figures.mean() - figures if len(figures) else torch.zeros(1, dtype=torch.float64)
    spread = gaps.square().sum()
    skewed: Tensor = gaps.pow(3).sum() / (6 * spread.clamp_min(1e-300).pow(1.5))
    return torch.where(spread > 1e-24, skewed, torch.zeros_like(skewed))
