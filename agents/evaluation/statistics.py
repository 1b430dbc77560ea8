"""Paired differences over contexts, and tests of them.

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

from unspoken.agents.evaluation.outcome import Outcome

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
