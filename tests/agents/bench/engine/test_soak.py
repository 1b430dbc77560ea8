"""The benchmark of many small runs."""

import pytest

from unspoken.agents.bench.engine import memory, soak
from unspoken.agents.testing import tiny_model


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RUNS", 6), ("WARM_UP", 2), ("EVERY", 2)):
        monkeypatch.setattr(soak, name, value)


def test_soak_has_its_figures() -> None:
    """The memory is read every few runs, and its growth begins after the warm-up."""
    rows, summary = soak.measure(tiny_model(), progress=lambda line: None)
    read = [row for row in rows if row["of"] == "memory"]
    assert [row["runs"] for row in read] == [0, 2, 4, 6]
    assert summary["runs"] == 6 and summary["jobs_growth"] == 0
    if memory.resident_kind() != "unknown":
        growth = read[-1]["rss_mb"] - read[1]["rss_mb"]
        assert summary["rss_growth_mb"] == pytest.approx(growth, abs=0.02)


def test_soak_says_where_the_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no figure where the system gives none."""
    monkeypatch.setattr(soak, "resident_bytes", lambda: None)
    monkeypatch.setattr(soak, "resident_kind", lambda: "unknown")
    rows, summary = soak.measure(tiny_model(), progress=lambda line: None)
    assert summary["rss_growth_mb"] is None and rows[-1]["of"] == "memory, unknown"
