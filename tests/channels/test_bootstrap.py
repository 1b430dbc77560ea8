"""Intervals over contexts."""

import pytest
import torch
from torch import Tensor

from unspoken.channels.bootstrap import Estimate, bca, share


def ratio(means: Tensor) -> Tensor:
    return share(means[..., 0], means[..., 1])


def first(means: Tensor) -> Tensor:
    return means[..., 0]


def test_an_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 samples of 40 skewed draws each, 95 % intervals hold the true mean in most."""
    generator = torch.Generator().manual_seed(1)
    held = 0
    for _ in range(200):
        drawn = -torch.rand(40, 1, generator=generator).log()  # exponential, mean 1
        found = bca(drawn, first, draws=400)
        assert found.low is not None and found.high is not None
        held += found.low <= 1 <= found.high
    assert 174 <= held <= 200


def test_a_ratio_is_that_of_the_means() -> None:
    """Not the mean of ratios; a context counts as one draw with both its parts."""
    values = torch.tensor([[1.0, 1.0], [0.0, 3.0]])
    assert bca(values, ratio).value == 0.25
    proportional = torch.rand(30, 1) * torch.tensor([[0.8, 1.0]])
    found = bca(proportional, ratio)
    for end in (found.value, found.low, found.high):
        assert end == pytest.approx(0.8)


def test_where_the_text_gains_nothing_there_is_no_figure() -> None:
    """A share of nothing is none, and of what may be nothing has no interval."""
    assert bca(torch.tensor([[1.0, -1.0], [1.0, 0.5]]), ratio) == Estimate(None, None, None)
    unsure = torch.tensor([[1.0, 4.0], [1.0, -1.0], [1.0, -1.5]])
    found = bca(unsure, ratio)
    assert found.value is not None and found.low is None and found.high is None
    assert bca(torch.zeros(0, 2), ratio) == Estimate(None, None, None)


def test_skewed_draws_have_an_interval_that_leans_as_they_do() -> None:
    """It reaches further up from the mean than down."""
    values = torch.tensor([0.1, 0.2, 0.2, 0.4, 0.5, 0.9, 1.4, 2.2, 3.9, 7.0])[:, None]
    found = bca(values, first)
    assert found.low is not None and found.high is not None and found.value is not None
    assert found.high - found.value > 1.5 * (found.value - found.low)
