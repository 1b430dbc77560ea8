"""Paired differences over contexts: intervals and tests.

The unit is the context. Rows of one context are averaged first, for they are not independent.
Scores lie between 0 and 1, so differences lie between -1 and 1.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import comb, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from unspoken.agents.evaluation.outcome import Outcome

DRAWS = 20_000
FEWEST = 5
"""Draws that must lie beyond a bound for it to be one."""

_CHUNK = 4_000_000
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Two arms over the same rows.

    Attributes:
        gaps: Per context, the mean of the arm's scores less the reference's.
        rows: Rows that both arms have a score for.
        wins: Rows with a higher score under the arm.
        losses: Rows with a lower one.
        binary: Whether every score is 0 or 1, and each context has one row.
    """

    gaps: tuple[float, ...]
    rows: int
    wins: int
    losses: int
    binary: bool

    @property
    def mean(self) -> float:
        """The mean difference of contexts; 0 where there are none."""
        return float(np.mean(self.gaps)) if self.gaps else 0.0

    @property
    def sd(self) -> float:
        """The standard deviation of the contexts' differences; 0 for fewer than two."""
        return float(np.std(self.gaps, ddof=1)) if len(self.gaps) > 1 else 0.0


def paired_scores(arm: Iterable[Outcome], reference: Iterable[Outcome]) -> Pairs:
    """Pair two arms by row; rows that only one of them has a score for are left out."""
    scores = {one.row: one.score for one in reference if one.score is not None}
    gaps: defaultdict[str, list[float]] = defaultdict(list)
    seen = set[float]()
    for one in arm:
        if one.score is not None and one.row in scores:
            gaps[one.context].append(one.score - scores[one.row])
            seen |= {one.score, scores[one.row]}
    every = [gap for group in gaps.values() for gap in group]
    return Pairs(
        gaps=tuple(sum(group) / len(group) for group in gaps.values()),
        rows=len(every),
        wins=sum(gap > 0 for gap in every),
        losses=sum(gap < 0 for gap in every),
        binary=seen <= {0.0, 1.0} and len(every) == len(gaps),
    )


def context_means(outcomes: Iterable[Outcome]) -> tuple[float, ...]:
    """The mean score of each context."""
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for one in outcomes:
        if one.score is not None:
            scores[one.context].append(one.score)
    return tuple(sum(group) / len(group) for group in scores.values())


class Bootstrap:
    """Intervals of the mean of contexts' values, at any level, of one set of draws.

    Bias-corrected and accelerated (Efron 1987, equation 2.3). Two corrections for few contexts:

    - The normal quantile is replaced by that of t, times the square root of n / (n - 1), as in the
      expanded percentile interval (Hesterberg 2015, section 5.3).
    - What n contexts did not show may still happen in a share 1 - tail ** (1 / n) of all contexts
      (Clopper and Pearson 1934 with no event). A bound is never closer to the mean than if a value
      at the end of the range had that share. Without this, contexts that all agree would seem to
      prove that no other could differ.

    Args:
        values: A value per context, (contexts,).
        ends: The range in which values lie.
        draws: How many samples are drawn.
        seed: Of the draws.
    """

    def __init__(
        self,
        values: Sequence[float],
        ends: tuple[float, float] = (-1.0, 1.0),
        *,
        draws: int = DRAWS,
        seed: int = 0,
    ) -> None:
        data = np.asarray(values, dtype=np.float64)
        self.count, self.ends, self.draws = len(data), ends, draws
        self.mean = float(data.mean()) if len(data) else 0.0
        if self.count < 2:
            return
        # Sums in another order differ in the last bit; draws equal to the mean must be seen so.
        self._drawn = np.sort(np.round(_means(data, draws, np.random.default_rng(seed)), 12))
        mean = round(self.mean, 12)
        below, upto = (np.searchsorted(self._drawn, mean, side) for side in ("left", "right"))
        share = float(below + upto) / (2 * draws)
        self._bias = _NORMAL.inv_cdf(min(max(share, 0.5 / draws), 1 - 0.5 / draws))
        off = data - self.mean
        spread = float((off**2).sum())
        self._acceleration = float((off**3).sum()) / (6 * spread**1.5) if spread > 1e-20 else 0.0

    def bounds(self, tail: float) -> tuple[float, float]:
        """Lower and upper bound with so much probability beyond each.

        They are the ends of the range for fewer than two contexts, or a tail with too few draws.
        """
        if self.count < 2 or tail * self.draws < FEWEST:
            return self.ends
        z = sqrt(self.count / (self.count - 1)) * t_quantile(1 - tail, self.count - 1)
        unseen = 1 - tail ** (1 / self.count)
        least, most = ((1 - unseen) * self.mean + unseen * end for end in self.ends)
        return min(self._quantile(-z), least), max(self._quantile(z), most)

    def _quantile(self, z: float) -> float:
        scale = 1 - self._acceleration * (self._bias + z)
        if scale <= 0:
            return float(self._drawn[0 if z < 0 else -1])
        level = _NORMAL.cdf(self._bias + (self._bias + z) / scale)
        return float(np.quantile(self._drawn, level))


def _means(
    data: NDArray[np.float64], draws: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """Means of samples drawn with replacement, (draws,)."""
    step = max(_CHUNK // len(data), 1)
    parts = [
        data[random.integers(len(data), size=(min(step, draws - done), len(data)))].mean(axis=1)
        for done in range(0, draws, step)
    ]
    return np.concatenate(parts)


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


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided p of McNemar's test: a binomial test of the rows that differ."""
    differ, fewer = wins + losses, min(wins, losses)
    return min(1.0, float(2 * sum(comb(differ, k) for k in range(fewer + 1)) / 2**differ))


def spent(share: float, alpha: float) -> float:
    """One-sided alpha spent after a share of the data (Lan and DeMets 1983, O'Brien-Fleming)."""
    return 2 * _NORMAL.cdf(-_NORMAL.inv_cdf(1 - alpha / 2) / sqrt(share))


def tails(shares: Sequence[float], alpha: float) -> tuple[float, ...]:
    """One-sided alpha for each look; together they are `alpha`.

    A look has what is spent there and was not before. That the looks see common data is not used,
    so the sum holds for whatever is tested, at the cost of a little power.
    """
    total = [0.0, *(spent(share, alpha) for share in shares)]
    return tuple(after - before for before, after in pairwise(total))


def z_of(tail: float) -> float:
    """The normal quantile with so much beyond it."""
    return _NORMAL.inv_cdf(1 - tail)
