"""How much of what a text gains a bridge keeps, with intervals over rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Estimate", "Kept", "kept"]

DRAWS = 1000
LEVEL = 0.95
TRUSTED = 0.5
"""Least share of the draws in which the text must gain, for an interval to mean something."""


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


@dataclass(frozen=True, slots=True)
class Kept:
    """What one way of handing a message over keeps of the text's gain.

    Attributes:
        retention: Gain over no message, as a share of the text's gain.
        specific: Retention less what another example's message gains, where that gains anything.
    """

    retention: Estimate
    specific: Estimate


def kept(
    none: Tensor, text: Tensor, way: Tensor, mismatched: Tensor | None = None, *, seed: int = 0
) -> Kept:
    """Retention of a way, pooled over rows: Σ(none - way) / Σ(none - text).

    The interval is a paired bootstrap (Efron and Tibshirani 1993, chapter 13): all losses of a row are drawn
    together. Where the text gains nothing there is nothing to keep, and the figures are None.

    Args:
        none: Loss per row without the message, (rows,).
        text: With the full text, (rows,).
        way: By the way in question, (rows,).
        mismatched: With another example's message, (rows,); None leaves the specific figures out.
        seed: Of the draws.
    """
    losses = torch.stack([none, text, way, way if mismatched is None else mismatched]).double()
    losses = losses.cpu()
    rows = losses.shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(rows, (DRAWS, rows), generator=generator)
    sums = torch.cat([losses.sum(dim=1)[:, None], losses[:, drawn].sum(dim=2)], dim=1)
    gain = sums[0] - sums[1]
    share = (sums[0] - sums[2]) / gain
    lost = (sums[0] - sums[3]) / gain
    specific = share - lost.clamp_min(0)
    nothing = Estimate(None, None, None)
    return Kept(
        _estimate(share, gain > 0), nothing if mismatched is None else _estimate(specific, gain > 0)
    )


def _estimate(figures: Tensor, sound: Tensor) -> Estimate:
    """The first figure is that of all rows, the others are draws; only the sound ones count."""
    if not bool(sound[0]):
        return Estimate(None, None, None)
    draws = figures[1:][sound[1:]]
    value = float(figures[0])
    if len(draws) < TRUSTED * (len(figures) - 1):
        return Estimate(value, None, None)
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(draws, torch.tensor([tail, 1 - tail], dtype=draws.dtype)).tolist()
    return Estimate(value, low, high)
