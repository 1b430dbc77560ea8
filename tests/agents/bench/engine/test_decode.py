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


def test_a_model_that_is_not_installed_has_a_row_that_says_so() -> None:
    """Whoever reads the rows sees which model they lack, and why; so does who watches."""
    said: list[str] = []
    row = decode._other("embedded:none-of-this-name", make("llama"), None, 1, said.append)
    assert row["of"] == "embedded:none-of-this-name" and "none-of-this-name" in row["left_out"]
    assert said == [f"{row['of']} is left out: {row['left_out']}"]
