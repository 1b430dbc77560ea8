"""``unspoken bench resume``: runs that are killed at any moment."""

import pytest

from unspoken.agents.bench.engine import resume


@pytest.mark.long
def test_runs_that_are_killed_end_as_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every result is that of an undisturbed run, and no side effect is repeated or lost."""
    monkeypatch.setattr(resume, "KILLS", 4)
    monkeypatch.setattr(resume, "PLAIN", 1)
    rows, summary = resume.measure(resume.WordModel(), progress=lambda line: None)
    assert len(rows) == 4 and all(row["equal"] for row in rows)
    assert summary["repeated_side_effects"] == summary["lost_side_effects"] == 0
