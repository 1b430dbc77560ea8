"""Intervals over contexts, of ratios and of means."""

import numpy as np
import pytest

from unspoken.channels.bootstrap import NOTHING, Bootstrap, Estimate, share, unseen


def ratio(values: np.ndarray) -> Estimate:
    return Bootstrap(values, None, statistic=share, draws=2000).estimate()


def test_a_ratio_is_that_of_the_means() -> None:
    """Not the mean of ratios; a context counts as one draw with both its parts."""
    assert ratio(np.array([[1.0, 1.0], [0.0, 3.0]])).value == 0.25
    found = ratio(np.random.default_rng(1).random((30, 1)) * np.array([[0.8, 1.0]]))
    for end in (found.value, found.low, found.high):
        assert end == pytest.approx(0.8)


def test_an_interval_of_a_ratio_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 100 samples of 40 skewed contexts, 95 % intervals hold the true ratio in most."""
    random, held = np.random.default_rng(2), 0
    for _ in range(100):
        whole = random.exponential(1.0, 40)
        part = 0.8 * whole + random.normal(0, 0.2, 40)
        found = Bootstrap(
            np.stack([part, whole], axis=1), None, statistic=share, draws=400
        ).estimate()
        assert found.low is not None and found.high is not None
        held += found.low <= 0.8 <= found.high
    assert held >= 89


def test_where_the_text_gains_nothing_there_is_no_figure() -> None:
    """A share of nothing is none, and of what may be nothing has no interval."""
    assert ratio(np.array([[1.0, -1.0], [1.0, 0.5]])) == NOTHING
    found = ratio(np.array([[1.0, 4.0], [1.0, -1.0], [1.0, -1.5]]))
    assert found.value is not None and found.low is None and found.high is None
    assert ratio(np.zeros((0, 2))) == NOTHING


def test_contexts_that_agree_leave_room_for_what_was_not_seen() -> None:
    """A hundred without a loss do not show that less than 0.03 are lost; 122 do."""
    for count, shown in ((100, False), (122, True)):
        low = Bootstrap([0.0] * count).estimate().low
        assert low == pytest.approx(-unseen(count))
        assert (low >= -0.03) == shown
