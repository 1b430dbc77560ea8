"""Intervals by the bootstrap, with the context as the unit: all its rows are drawn together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

DRAWS = 20_000
TAIL = 0.025
"""Probability beyond each bound of a 95 % interval."""

FEWEST = 5
"""Draws that must lie beyond a bound for it to be one."""

SOUND = 0.975
"""Least share of the draws for which a figure must exist, for an interval to mean something."""

_CHUNK = 4_000_000
_NORMAL = NormalDist()

Numbers = NDArray[np.float64]
Statistic = Callable[[Numbers], Numbers]
"""Gives a figure of the columns' means, (…, columns) to (…); NaN where there is none."""


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


def share(means: Numbers) -> Numbers:
    """The first mean as a share of the second; NaN where that is not above zero."""
    part, whole = means[..., 0], means[..., 1]
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1.0), np.nan)


def _mean(means: Numbers) -> Numbers:
    first: Numbers = means[..., 0]
    return first


class Bootstrap:
    """Intervals of a figure of contexts' means, at any level, of one set of draws.

    Bias-corrected and accelerated (Efron 1987, equation 2.3). Two corrections for few contexts:

    - The normal quantile is replaced by that of t, times the square root of n / (n - 1), as in the
      expanded percentile interval (Hesterberg 2015, section 5.3).
    - What n contexts did not show may still happen in a share 1 - tail ** (1 / n) of all contexts
      (Clopper and Pearson 1934 with no event). A bound is never closer to the mean than if a value
      at the end of the range had that share. Without this, contexts that all agree would seem to
      prove that no other could differ. It needs a range, so ratios do without.

    Args:
        values: A value per context, (contexts,), or several, (contexts, columns).
        ends: The range in which the figure's values lie; None for no range.
        statistic: The figure; the first column's mean if not given.
        draws: How many samples are drawn.
        seed: Of the draws.
    """

    def __init__(
        self,
        values: Sequence[float] | Numbers,
        ends: tuple[float, float] | None = (-1.0, 1.0),
        *,
        statistic: Statistic = _mean,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> None:
        data = np.asarray(values, dtype=np.float64)
        data = data[:, None] if data.ndim == 1 else data
        self.count, self.ends, self.draws = len(data), ends, draws
        self.mean = float(statistic(data.mean(axis=0))) if len(data) else 0.0
        self._sound = self.count >= 2
        if not self._sound:
            return
        drawn = statistic(_means(data, draws, np.random.default_rng(seed)))
        drawn = drawn[np.isfinite(drawn)]
        self._sound = isfinite(self.mean) and len(drawn) >= SOUND * draws
        if not self._sound:
            return
        # Sums in another order differ in the last bit; draws equal to the mean must be seen so.
        self._drawn = np.sort(np.round(drawn, 12))
        mean = round(self.mean, 12)
        below, upto = (np.searchsorted(self._drawn, mean, side) for side in ("left", "right"))
        part = float(below + upto) / (2 * len(drawn))
        self._bias = _NORMAL.inv_cdf(min(max(part, 0.5 / draws), 1 - 0.5 / draws))
        self._acceleration = _acceleration(data, statistic)

    def bounds(self, tail: float) -> tuple[float, float]:
        """Lower and upper bound with so much probability beyond each.

        They are the ends of the range, or infinite without one, for fewer than two contexts, a
        figure that too many draws lack, or a tail with too few draws.
        """
        if not self._sound or tail * self.draws < FEWEST:
            return self.ends or (-np.inf, np.inf)
        z = sqrt(self.count / (self.count - 1)) * t_quantile(1 - tail, self.count - 1)
        low, high = self._quantile(-z), self._quantile(z)
        if self.ends is None:
            return low, high
        part = unseen(self.count, tail)
        least, most = ((1 - part) * self.mean + part * end for end in self.ends)
        return min(low, least), max(high, most)

    def estimate(self) -> Estimate:
        """The figure and its 95 % interval, of which an infinite bound is None."""
        if not self.count or not isfinite(self.mean):
            return NOTHING
        low, high = self.bounds(TAIL)
        return Estimate(self.mean, low if isfinite(low) else None, high if isfinite(high) else None)

    def _quantile(self, z: float) -> float:
        scale = 1 - self._acceleration * (self._bias + z)
        if scale <= 0:
            return float(self._drawn[0 if z < 0 else -1])
        level = _NORMAL.cdf(self._bias + (self._bias + z) / scale)
        return float(np.quantile(self._drawn, level))


def unseen(count: int, tail: float = TAIL) -> float:
    """The share of all contexts that may do what none of so many did."""
    return float(1 - tail ** (1 / count)) if count else 1.0


def _means(data: Numbers, draws: int, random: np.random.Generator) -> Numbers:
    """Means of samples drawn with replacement, (draws, columns)."""
    step = max(_CHUNK // len(data), 1)
    columns = [np.ascontiguousarray(column) for column in data.T]
    parts = []
    for done in range(0, draws, step):
        drawn = random.integers(len(data), size=(min(step, draws - done), len(data)))
        parts.append(np.stack([column[drawn].mean(axis=1) for column in columns], axis=1))
    return np.concatenate(parts)


def _acceleration(data: Numbers, statistic: Statistic) -> float:
    """How the figure's spread changes with the figure, by leaving out one context each."""
    figures = statistic((data.sum(axis=0) - data) / (len(data) - 1))
    figures = figures[np.isfinite(figures)]
    off = figures.mean() - figures if len(figures) else figures
    spread = float((off**2).sum())
    return float((off**3).sum()) / (6 * spread**1.5) if spread > 1e-24 else 0.0


def t_quantile(level: float, freedom: int) -> float:
    """A quantile of Student's t (Abramowitz and Stegun 1964, 26.7.5).

    Exact for 1 and 2 degrees of freedom; within 1 % for 5 and more, down to tails of 0.001.
    """
    z = _NORMAL.inv_cdf(level)
    if freedom == 1:
        return float(np.tan(np.pi * (level - 0.5)))
    if freedom == 2:
        return (2 * level - 1) / sqrt(2 * level * (1 - level))
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + float(sum(term / freedom**power for power, term in enumerate(terms, 1)))
