"""Intervals cover what they say, claims are false no more often than they say."""

import numpy as np
import pytest

from unspoken.agents.evaluation.design import Design
from unspoken.agents.evaluation.outcome import Outcome
from unspoken.agents.evaluation.statistics import mcnemar, paired_scores, spent, tails
from unspoken.channels.bootstrap import Bootstrap, t_quantile

MARGIN, TAIL, TRIALS = 0.05, 0.025, 200


def rows(arm: str, scores: list[float | None], per_context: int = 1) -> list[Outcome]:
    return [
        Outcome(row=str(n), context=str(n // per_context), arm=arm, score=score)
        for n, score in enumerate(scores)
    ]


def right_or_wrong(random: np.random.Generator) -> np.ndarray:
    return random.choice([-1.0, 0.0, 1.0], p=[0.15, 0.75, 0.1], size=60)


def rarely_wrong(random: np.random.Generator) -> np.ndarray:
    return random.choice([-1.0, 0.0], p=[0.05, 0.95], size=60)


def graded(random: np.random.Generator) -> np.ndarray:
    return random.normal(-MARGIN, 0.4, 60).clip(-1, 1)


@pytest.mark.parametrize("draw", [right_or_wrong, rarely_wrong, graded])
def test_at_the_margin_no_worse_is_rarely_claimed(draw) -> None:
    """Where an arm loses just the margin, the claim is made in about alpha of all trials at most.

    Of 200 trials at 2.5 %, more than 12 would come about once in 500 times; the seed is fixed.
    """
    random = np.random.default_rng(3)
    bounds = [Bootstrap(draw(random), draws=1000).bounds(TAIL) for _ in range(TRIALS)]
    assert sum(low > -MARGIN for low, _ in bounds) <= 12
    covered = sum(low <= -MARGIN <= high for low, high in bounds)
    assert covered >= 0.91 * TRIALS


def test_the_bootstrap_is_scipys() -> None:
    """The quantiles are those of `scipy.stats.bootstrap`, but for the two corrections."""
    stats = pytest.importorskip("scipy.stats")
    data = np.random.default_rng(5).exponential(0.1, 200)
    theirs = stats.bootstrap((data,), np.mean, n_resamples=20_000, rng=1).confidence_interval
    ours = Bootstrap(data, ends=(0.0, 0.2)).bounds(TAIL)
    assert ours == pytest.approx((theirs.low, theirs.high), rel=0.03)


def test_contexts_that_agree_prove_little() -> None:
    """Fifty contexts without a loss leave room for one in fourteen."""
    assert Bootstrap([0.0] * 50).bounds(TAIL)[0] == pytest.approx(-0.0711, abs=1e-3)


def test_a_tail_without_draws_has_no_bound() -> None:
    """A level that the draws cannot tell is answered with all that is possible."""
    assert Bootstrap([0.1, 0.2, 0.3], draws=1000).bounds(0.001) == (-1.0, 1.0)


def test_rows_of_a_context_count_once() -> None:
    """Five rows of each context say no more than one of each that is their mean."""
    scores: list[float | None] = [1.0] * 50 + [0.0] * 50
    many = paired_scores(rows("plan", scores, 5), rows("text", [0.0] * 100, 5))
    assert len(many.gaps) == 20 and many.rows == 100 and many.mean == 0.5
    assert not many.binary
    assert Bootstrap(many.gaps).bounds(TAIL)[0] < Bootstrap(scores).bounds(TAIL)[0]


def test_rows_without_a_score_are_left_out() -> None:
    """A row counts where both arms have it."""
    pairs = paired_scores(rows("plan", [1.0, None, 0.0]), rows("text", [0.0, 1.0, None]))
    assert (pairs.rows, pairs.wins, pairs.losses) == (1, 1, 0)


@pytest.mark.parametrize(
    ("level", "freedom", "value"),  # tables of Student's t
    [(0.975, 2, 4.303), (0.975, 5, 2.571), (0.975, 30, 2.042), (0.999, 9, 4.297)],
)
def test_quantiles_of_t(level: float, freedom: int, value: float) -> None:
    """They are those of the tables."""
    assert t_quantile(level, freedom) == pytest.approx(value, rel=2e-3)


def test_mcnemar() -> None:
    """The exact p: of 12 rows that differ, 3 and fewer or 9 and more; of none, 1."""
    assert mcnemar(3, 9) == pytest.approx(2 * 299 / 4096)
    assert mcnemar(0, 0) == 1.0


def test_looks_share_alpha() -> None:
    """Early looks spend little (Lan and DeMets 1983, table 1), and all looks spend alpha."""
    parts = tails((0.25, 0.5, 1.0), 0.025)
    assert sum(parts) == pytest.approx(0.025)
    assert spent(0.5, 0.025) == pytest.approx(0.00153, abs=2e-5)
    assert list(parts) == sorted(parts)


def test_what_can_be_seen_is_said_before() -> None:
    """More contexts see smaller differences, more arms larger ones, and no n sees everything."""
    few, many = (Design(rows=n, contexts=n, arms=("plan",)) for n in (50, 200))
    shared = Design(rows=200, contexts=200, arms=("plan", "splice", "bridge"))
    assert few.smallest() == pytest.approx(0.5 * (1.987 + 0.842) / 50**0.5, rel=0.01)
    assert many.smallest() < shared.smallest() < few.smallest()
    assert many.smallest(sd=0.0) > 0.01


def test_what_is_needed_would_do() -> None:
    """As many contexts as are asked for, as far apart as those before, would show it."""
    design = Design(rows=40, contexts=40, arms=("plan",), margin=0.1)
    contexts = design.needed(0.0, 0.3, TAIL)
    assert contexts is not None
    values = np.random.default_rng(0).normal(0, 0.3, contexts)
    values -= values.mean()
    assert Bootstrap(values).bounds(TAIL)[0] > -0.1
    assert design.needed(-0.1, 0.3, TAIL) is None
