"""The benchmark of one row runs to its end on a tiny model."""

import pytest
from architectures import make

from unspoken.agents.bench.engine import decode


def test_decode_compares_with_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """On both models every token is generate's."""
    settings = {"PROMPTS": 2, "NEW": 8, "PREFILL": 40, "ROUNDS": 1, "OTHERS": ()}
    for name, value in settings.items():
        monkeypatch.setattr(decode, name, value)
    rows, summary = decode.measure(make("llama"), progress=lambda line: None)
    assert [row["equal"] for row in rows if "equal" in row] == [2, 2, 2]
    assert summary["tokens_equal"] is summary["continuation_equals_text"] is True
    ours, theirs = (row for row in rows if "prefill" in row["of"])
    assert summary["prefill_vs_transformers"] == theirs["ours_is_faster"]
    assert ours["ours_is_faster"] == 1.0
    assert all("cpu_share" in row for row in rows if "seconds" in row)


def test_a_model_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said which, and why; the others are compared all the same."""
    monkeypatch.setattr(decode, "OTHERS", ("embedded:none-of-this-name",))
    said: list[str] = []
    assert list(decode._others(make("llama"), said.append)) == []
    assert said[0].startswith("embedded:none-of-this-name is left out")
