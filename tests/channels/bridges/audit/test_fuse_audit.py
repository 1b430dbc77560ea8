"""The audit of fuse mode: what it needs, and its arithmetic."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import make
from fusers import bridge_between, fuser_between

from unspoken.channels.bridges.audit.fuse_audit import (
    ending_as,
    likeliest,
    log_likelihoods,
    with_fuse,
)
from unspoken.channels.bridges.audit.plan import AuditPlan
from unspoken.channels.bridges.bounds import bounds_of
from unspoken.channels.bridges.manifest import Audit
from unspoken.channels.errors import InputError
from unspoken.channels.metrics import paired, wilson


def test_an_audit_needs_two_questions(tmp_path: Path) -> None:
    """With one there is no other's state to hold against it."""
    text = "Please choose: who is it?\n\nAnswer1: the key Answer2: the reader\n\nAnswer format: x"
    questions = tmp_path / "rows.jsonl"
    questions.write_text(json.dumps({"instruction": text, "answer": "answer1"}))
    empty = Audit(
        date=date.today(), machine={}, files=(), rows=(), summary={}, retention_lower_bound=0.5
    )
    pair = make("qwen3"), make("llama", 1)
    bridge = bridge_between(*pair, tmp_path / "c", fuser_between(*pair, trained=False))
    with pytest.raises(InputError, match="1 rows with one message"):
        with_fuse(empty, bridge.fuser, *pair, AuditPlan(choice=questions).rows())


def test_another_row_s_rows_end_where_these_end() -> None:
    """Cut at the front, or repeated, so that the last rows stand together."""
    rows = torch.arange(4.0)[:, None]
    assert ending_as(rows, 2).flatten().tolist() == [2, 3]
    assert ending_as(rows, 6).flatten().tolist() == [2, 3, 0, 1, 2, 3]


def test_intervals_are_those_of_the_books() -> None:
    """Wilson's for 8 of 10, and a paired difference that a few rows which agree do not prove."""
    low, high = wilson(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    few, many = (paired([True] * n, [False] * n) for n in (5, 100))
    assert few[0] == many[0] == 1.0 and few[1] < 0 < 0.9 < many[1] < 1
    summary = {"fuse_over_mismatched_low": 0.2, "fuse_n": 99}
    assert bounds_of(summary.get, compared=True).fuse_adds is None
    assert bounds_of({**summary, "fuse_n": 100}.get, compared=True).fuse_adds == 0.2
    middle, low, high = paired([True, False, True, True], [True, True, False, True])
    assert middle == 0.0 and low < 0 < high


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma2", "gpt-neox, partial rotary"])
def test_options_are_scored_as_plain_transformers_scores_them(name: str) -> None:
    """By the sum of log-probabilities, and by that per character; in short windows too."""
    model = make(name, 1)
    options = ["the key", "question of the cache", "er"]
    read = [*model.frame("bare").before, *model.words("Question: who?\nAnswer:")[0]]
    sums = []
    for option in options:
        ids = model.words(f" {option}")[0]
        with torch.no_grad():
            logits: Any = model.hf(model.tensor([*read, *ids])[None]).logits[0]
        logs = logits.log_softmax(-1)[-len(ids) - 1 : -1]
        sums.append(float(logs.gather(1, model.tensor(ids)[:, None]).sum()))
    state = model.prefill(model.tensor(read)).state
    halves = [state.slice(0, 5), state.slice(5, len(read) - 1)]
    found = log_likelihoods(model, read[-1], halves, options)
    assert found == pytest.approx(sums, abs=1e-3)
    assert likeliest(found, options, by_characters=False) == sums.index(max(sums))
    per = [total / len(option) for total, option in zip(sums, options, strict=True)]
    assert likeliest(found, options) == per.index(max(per))
