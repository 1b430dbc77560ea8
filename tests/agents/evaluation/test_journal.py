"""The folder of an evaluation: it goes on where it was, as what it was."""

import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from unspoken.agents.evaluation.journal import Journal
from unspoken.agents.evaluation.outcome import Outcome
from unspoken.channels.errors import StoreError

ORIGIN: dict[str, Any] = {"workflow": {"name": "pair"}, "rows": {"1": "ab"}}


def outcome(row: str, arm: str = "text") -> Outcome:
    return Outcome(row=row, context="c", arm=arm, answer="ä", gold=["a", "b"], seconds=1.5)


def test_outcomes_are_read_again(tmp_path: Path) -> None:
    """All that were whole; the line that an interruption cut is written anew."""
    journal = Journal(tmp_path)
    with journal.open(ORIGIN):
        journal.add(outcome("1"))
        journal.add(outcome("2", "plan"))
    file = tmp_path / "outcomes.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    again = Journal(tmp_path)
    with again.open(ORIGIN):
        assert again.outcomes == {("1", "text"): outcome("1")}
        again.add(outcome("2", "plan"))
    last = Journal(tmp_path)
    with last.open(ORIGIN):
        assert last.of(["2", "1"], ["plan"]) == (outcome("2", "plan"),)


def test_another_evaluation_is_refused_with_the_difference(tmp_path: Path) -> None:
    """What changed is named."""
    with Journal(tmp_path).open(ORIGIN):
        pass
    changed = {**ORIGIN, "rows": {"1": "cd"}}
    found = re.escape("rows.1 was 'ab', and is 'cd'")
    with pytest.raises(StoreError, match=found), Journal(tmp_path).open(changed):
        pass


def test_an_arm_that_is_added_is_begun_then(tmp_path: Path) -> None:
    """What an arm was begun with stays, for as long as it is among the arms."""
    for arms in ({}, {"bridge": {"0": "one"}}, {"splice": {"0": "x"}}):
        with Journal(tmp_path).open({**ORIGIN, "arms": arms}):
            pass
    refitted = {**ORIGIN, "arms": {"bridge": {"0": "two"}}}
    found = re.escape("arms.bridge.0 was 'one', and is 'two'")
    with pytest.raises(StoreError, match=found), Journal(tmp_path).open(refitted):
        pass


def test_what_is_right_may_be_any_value(tmp_path: Path) -> None:
    """A turn that was paid for is written down."""
    journal = Journal(tmp_path)
    with journal.open(ORIGIN):
        journal.add(replace(outcome("1"), gold={Decimal("1.5")}))
    assert "1.5" in (tmp_path / "outcomes.jsonl").read_text(encoding="utf-8")


def test_a_folder_is_for_one_process(tmp_path: Path) -> None:
    """A second one is told so."""
    with (
        Journal(tmp_path).open(ORIGIN),
        pytest.raises(StoreError, match="another process"),
        Journal(tmp_path).open(ORIGIN),
    ):
        pass


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    """With the file and the line."""
    with Journal(tmp_path).open(ORIGIN):
        pass
    (tmp_path / "outcomes.jsonl").write_text('{"row": 1}\n', encoding="utf-8")
    found = re.escape("outcomes.jsonl:1")
    with pytest.raises(StoreError, match=found), Journal(tmp_path).open(ORIGIN):
        pass
