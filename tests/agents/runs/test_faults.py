"""What fails in the middle of a run: the error is clean, and the run goes on without harm."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unspoken.agents import Agent, Workflow
from unspoken.agents.runs import RunStore
from unspoken.agents.runs import packets as packets_module
from unspoken.agents.testing import ScriptedModel
from unspoken.agents.tools import tool
from unspoken.channels import StoreError

FULL, BUSY = sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY


class _Failing(RunStore):
    """A store one of whose changes fails.

    Args:
        folder: Where it is.
        at: Which change, from 0.
        code: SQLite's code of the error.
    """

    def __init__(self, folder: Path, at: int, code: int) -> None:
        super().__init__(folder, durable=False)
        self.changes, self._at, self._code = 0, at, code

    def _change(self, change: Callable[[sqlite3.Connection], Any], **how: bool) -> Any:
        self.changes += 1
        if self.changes == self._at + 1:

            def failing(db: sqlite3.Connection) -> None:
                change(db)
                error = sqlite3.OperationalError("it fails")
                error.sqlite_errorcode = self._code
                raise error

            return super()._change(failing, **how)
        return super()._change(change, **how)


@pytest.fixture(scope="module")
def model() -> ScriptedModel:
    return ScriptedModel({})


class Letters:
    """A workflow that sends a letter, which somebody reads afterwards, and who got one."""

    def __init__(self, model: ScriptedModel) -> None:
        self.sent: list[str] = []

        @tool
        async def send(to: str) -> str:
            """Send."""
            self.sent.append(to)
            return "sent"

        def words(agent: str, turn: int, prompt: str) -> str:
            if agent == "b" or "returned" in prompt:
                return "done"
            return '{"name": "send", "arguments": {"to": "ann"}}'

        model.answers = words
        sender = Agent("a", model, prompt="Go.", tools=[send], generate={"max_new_tokens": 80})
        self.flow = Workflow("letters", [sender, Agent("b", model, prompt="Then.")])
        self.flow.connect("a", "b", "same_model_cache")


def changes_of(model: ScriptedModel, folder: Path) -> int:
    """How many changes a whole run makes."""
    store = _Failing(folder, -1, FULL)
    Letters(model).flow.run(run_id="r", store=store)
    return store.changes


@pytest.mark.parametrize(("code", "kind"), [(FULL, "full"), (BUSY, "locked")])
def test_whichever_change_fails_the_run_goes_on(
    model: ScriptedModel, tmp_path: Path, code: int, kind: str
) -> None:
    """Every change of a run fails once: a clean error, then the same end, and one letter.

    A letter whose sending could not be noted is told as unknown.
    """
    count = changes_of(model, tmp_path / "whole")
    assert count > 6
    for at in range(count):
        letters, store = Letters(model), _Failing(tmp_path / f"{at}", at, code)
        with pytest.raises(StoreError) as caught:
            letters.flow.run(run_id="r", store=store)
        assert caught.value.kind == kind, at
        result = letters.flow.run(run_id="r", store=store)
        told = [call.id for call in result.report.unknown_calls]
        assert result.outputs == {"b": "done"} and store.get("r").status == "finished", at
        assert letters.sent == ["ann"] or (letters.sent, told) == ([], ["a.1.1"]), at


def test_a_database_that_is_full_in_a_run_goes_on_with_room(
    model: ScriptedModel, tmp_path: Path
) -> None:
    """SQLite itself finds no room for a turn; what stood before is there still."""
    letters, store = Letters(model), RunStore(tmp_path, durable=False)
    letters.flow.run(run_id="before", store=store)
    db = store._connection()
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {pages}")
    runs = iter(range(9))  # until no page has room left
    with pytest.raises(StoreError) as caught:
        _run_each(letters.flow, runs, store)
    assert caught.value.kind == "full" and "free some space" in caught.value.fix
    assert store.get("before").status == "finished"
    db.execute("PRAGMA max_page_count = 100000")
    assert _run_each(letters.flow, iter([next(runs) - 1]), store) == {"b": "done"}


def _run_each(flow: Workflow, numbers: Iterator[int], store: RunStore) -> Any:
    for number in numbers:
        outputs = flow.run(run_id=f"r{number}", store=store).outputs
    return outputs


def test_a_commit_that_fails_leaves_no_transaction_open(tmp_path: Path) -> None:
    """The next change begins one of its own."""
    store = RunStore(tmp_path, durable=False)
    store._connection().execute("PRAGMA foreign_keys = ON")
    late = "CREATE TABLE late (x REFERENCES runs (id) DEFERRABLE INITIALLY DEFERRED)"
    store._change(lambda db: db.execute(late))
    with pytest.raises(StoreError):
        store._change(lambda db: db.execute("INSERT INTO late VALUES ('none')"))
    store._change(lambda db: db.execute("INSERT INTO late VALUES (NULL)"))
    assert store._read(lambda db: db.execute("SELECT COUNT(*) FROM late").fetchone()) == (1,)


def test_a_state_that_a_clean_takes_before_its_turn_is_kept_again(
    tmp_path: Path, model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packet is written before its turn stands in the store; somebody cleans in between."""
    store = RunStore(tmp_path, durable=False)
    flow = Letters(model).flow
    flow.run(run_id="old", store=store)
    cleaned, hand_over = [], RunStore.hand_over

    def add(self: RunStore, run: str, over: Any, told: Any, computed: Any) -> Any:
        states = [record.state for _, record, _ in computed if record.state]
        if states and not cleaned:
            cleaned.append(states[0])
            store.remove("old")
            assert not packets_module.state_file(store.states, states[0]).exists()
        return hand_over(self, run, over, told, computed)

    monkeypatch.setattr(RunStore, "hand_over", add)
    flow.run(run_id="new", store=store, states=True)
    assert packets_module.state_file(store.states, cleaned[0]).exists()
