"""The benchmark of answers with a schema runs to its end on a tiny model."""

import pytest

from unspoken.agents.bench.engine import schema
from unspoken.agents.testing import tiny_model


def test_every_answer_of_two_models_of_noise_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have a row per schema; what the shape costs is held against a step."""
    for name, value in {"ANSWERS": 7, "BATCH": 2, "STEPS": 3}.items():
        monkeypatch.setattr(schema, name, value)
    rows, summary = schema.measure(tiny_model(3), progress=lambda line: None)
    assert [row["of"] for row in rows] == [3, 2, 2] * 2
    assert summary["valid"] == summary["of"] == 14
    assert summary["overhead_per_token"] > 0
    assert all(row["forwards"] < row["tokens"] for row in rows)
    assert all(row["shape_ms"] > 0 for row in rows[:3])
