"""The benchmark of several senders runs to its end on a tiny model, and says what it measured."""

import pytest
from architectures import make

from unspoken.agents.bench.engine import fan_in, panel


def test_fan_in_controls_bracket_the_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read again is text itself; others' outputs are farther than those of this example."""
    small = {"DOCUMENT": 24, "COUNTS": (2,), "SIZES": (8, 16), "GROUPS": 2, "FORCED": 4}
    for name, value in {**small, "ROUNDS": 1}.items():
        monkeypatch.setattr(fan_in, name, value)
    monkeypatch.setattr(panel, "TASKS", ("who", "what"))
    monkeypatch.setattr(panel, "PROMPT", "so?")
    rows, summary = fan_in.measure(make("llama"), progress=lambda line: None)
    kl = {(row["output_tokens"], row["way"]): row["mean_kl"] for row in rows}
    for size in (8, 16):
        exact = ("text", "the default plan", "read again", "one exact, others read again")
        assert [kl[size, way] for way in exact] == pytest.approx([0] * 4, abs=1e-6)
        assert 1e-6 < kl[size, "spliced"] < kl[size, "another example's outputs"]
        assert kl[size, "one exact, others spliced"] > 1e-6
    ways = {row["way"]: row for row in rows if row["output_tokens"] == 16}
    share = {way: row["computed_share"] for way, row in ways.items()}
    assert share["spliced"] < share["the default plan"] == share["read again"] < share["text"] == 1
    default = [row for row in rows if row["way"] == "the default plan"]
    assert summary == {
        "kl_default_2": max(row["mean_kl"] for row in default),
        "seconds_over_text_2": max(row["over_text"] for row in default),
    }
