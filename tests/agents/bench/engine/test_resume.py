"""``unspoken bench resume``: runs that are killed at any moment."""

from collections import Counter

import pytest

from unspoken.agents.bench.engine import resume


@pytest.mark.parametrize(
    ("done", "told", "repeated"),
    [
        (["asks-1 a", "asks-2 b"], ["asks-1 a"], 0),
        (["asks-1 a", "asks-1 a"], ["asks-1 a"], 1),
        (["asks-1 a", "asks-1 b"], ["asks-1 b"], 1),
        (["asks-1 a", "asks-1 b"], ["asks-1 a", "asks-1 b"], 0),
    ],
)
def test_a_turn_has_one_effect_beside_those_it_tells_of(
    done: list[str], told: list[str], repeated: int
) -> None:
    """In the same words or in others."""
    assert resume._repeated(Counter(done), told) == repeated


@pytest.mark.long
def test_runs_that_are_killed_end_as_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every result is that of an undisturbed run, and no side effect is repeated, lost or untold.

    The first run is killed again while it goes on.
    """
    for name, value in (("KILLS", 3), ("UNSEEDED", 1), ("PLAIN", 1)):
        monkeypatch.setattr(resume, name, value)
    _, summary = resume.measure(resume.WordModel(), progress=lambda line: None)
    assert summary["kills"] == summary["equal_results"] == 3
    assert summary["kills_unseeded"] == summary["equal_results_unseeded"] == 1
    harm = ("repeated_side_effects", "lost_side_effects", "untold_side_effects")
    assert not any(summary[name + which] for name in harm for which in ("", "_unseeded"))
