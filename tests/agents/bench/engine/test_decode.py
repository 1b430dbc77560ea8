"""The benchmark of one row runs to its end on a tiny model."""

import pytest
from architectures import make

from unspoken.agents.bench.engine import decode


def test_decode_compares_with_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    """On both models every token is generate's."""
    monkeypatch.setattr(decode, "PROMPTS", 2)
    monkeypatch.setattr(decode, "NEW", 8)
    rows, summary = decode.measure(make("llama"), progress=lambda line: None)
    assert [row["equal"] for row in rows] == [2, 2, 2]
    assert summary["tokens_equal"] is summary["continuation_equals_text"] is True
