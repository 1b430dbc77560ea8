"""The benchmark of a memory that is too small for all states at a time."""

import pytest

from unspoken.agents.bench.engine import budget
from unspoken.agents.testing import tiny_model


def test_budget_has_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways write the same, and the tight one has put states on disk."""
    for name, value in (("DOCUMENTS", 16), ("TOKENS", 192), ("NEW", 2), ("ROUNDS", 1)):
        monkeypatch.setattr(budget, name, value)
    rows, summary = budget.measure(tiny_model(), progress=lambda line: None)
    free, tight = rows
    assert summary["answers_equal"] is True
    assert free["budget_mb"] is None and free["spilled_mb"] == 0
    # its peak depends on which turns met, so a quarter of another run's is not quite a quarter
    assert tight["budget_mb"] == pytest.approx(free["peak_mb"] / budget.OVER, rel=0.3)
    assert tight["spilled_mb"] > 0 and tight["peak_mb"] < free["peak_mb"]
    assert 0 < summary["peak_over_budget"] <= 1.1 and summary["slowdown"] > 0
