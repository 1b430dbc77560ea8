"""What happens to a store and a run where two use them at once, or the disk fails."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import cut_off

from unspoken.agents import Agent, Workflow
from unspoken.agents.runs import Question, RunStore, database
from unspoken.agents.runs.records import Origin
from unspoken.agents.runs.store import _INHERITED
from unspoken.agents.testing import ScriptedModel
from unspoken.channels import InputError, StoreError

ORIGIN = Origin(version="1", workflow={"name": "w"}, models={}, inputs={})


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path, wait_s=0.05, durable=False)


def begun(store: RunStore) -> RunStore:
    store.begin("a", ORIGIN)
    return store


def two(prompt: str = "then") -> Workflow:
    script = ScriptedModel({"a": "one", "b": "two"})
    agents = [Agent("a", script, prompt="go"), Agent("b", script, prompt=prompt)]
    return Workflow("two", agents).connect("a", "b", "text")


def test_two_make_one_store(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one finds the tables that the first one made meanwhile."""
    version, others = database._version, [RunStore(store.folder)]

    def quicker(db: Any) -> int:
        found = version(db)
        if others:
            others.pop().begin("b", ORIGIN)
        return found

    monkeypatch.setattr(database, "_version", quicker)
    assert {run.id for run in begun(store).runs()} == {"a", "b"}


def test_a_cancel_is_not_lost(store: RunStore) -> None:
    """Who goes on at the same moment is told; a run that has finished stays finished."""
    assert begun(store).cancel("a")
    assert not store.go_on("a") and store.get("a").status == "cancelled"
    assert store.go_on("a", revive=True)
    store.mark("a", "finished", {"o": "x"})
    assert not store.cancel("a")
    assert (store.get("a").status, store.get("a").outputs) == ("finished", {"o": "x"})


def test_the_first_answer_counts(store: RunStore) -> None:
    """A second one is an error, and none of those given with it is kept."""
    asked = Question(id="a.1", agent="a", turn=1, kind="answer", text="?")
    for name in ("a.1", "a.2"):
        store.note_question("a", replace(asked, id=name))
    store.answer("a", {"a.1": "yes"})
    with pytest.raises(InputError, match="answered meanwhile"):
        store.answer("a", {"a.2": "no", "a.1": "no"})
    known = [store.question("a", name) for name in ("a.1", "a.2")]
    assert [one.answer if one else "" for one in known] == ["yes", None]
    assert store.note_question("a", asked) == "yes"


def test_a_cancelled_run_takes_no_answer(store: RunStore) -> None:
    """Somebody has said that it is over."""
    flow = Workflow("w", [Agent("a", ScriptedModel({}), prompt="?", ask="answer")])
    with pytest.raises(Exception, match="waits"):
        flow.run(run_id="a", store=store)
    store.cancel("a")
    with pytest.raises(StoreError, match="was cancelled"):
        flow.resume("a", "words", store=store)


def test_what_a_run_goes_on_as_is_what_it_is(store: RunStore) -> None:
    """After --anyway the new workflow is the run's; the old one is refused."""
    two().run(run_id="r", store=store)
    two("then what").run(run_id="r", store=store, anyway=True)
    cut_off(store, "r", 1)
    assert two("then what").run(run_id="r", store=store).outputs == {"b": "two"}
    with pytest.raises(StoreError, match=r"agents.b.prompt was 'then what'"):
        two().run(run_id="r", store=store)


def test_nobody_removes_a_store_under_a_run(store: RunStore) -> None:
    """It is refused, and nothing is gone."""
    lock = begun(store).lock("a")
    lock.acquire()
    with pytest.raises(StoreError, match="goes on"):
        store.clear()
    assert store.get("a")
    lock.release()
    store.clear()
    assert not store.runs()


def full(*args: Any, **more: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(("name", "kind"), [("write_text", None), ("mkdir", "full")])
def test_a_full_disk_at_the_lock(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, name: str, kind: str | None
) -> None:
    """Who has it is told where there is room; the lock itself needs its folder."""
    lock = store.lock("a")
    with monkeypatch.context() as patch:
        patch.setattr(Path, name, full)
        if kind is None:
            lock.acquire()
        else:
            with pytest.raises(StoreError) as caught:
                lock.acquire()
            assert caught.value.kind == kind
    lock.release()
    assert not store.lock("a").held_elsewhere


@pytest.mark.parametrize("let_go", [RunStore.close, lambda store: store.runs()])
def test_a_connection_of_a_parent_process_is_never_closed(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, let_go: Callable[[RunStore], object]
) -> None:
    """SQLite forbids it in a child."""
    _, db = begun(store)._opened or (0, None)
    assert db is not None
    here = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: here + 1)
    let_go(store)
    assert store._opened is None or store._opened[1] is not db
    assert db.execute("SELECT id FROM runs").fetchall() == [("a",)]
    assert any(one is db for one in _INHERITED)


def test_every_file_is_its_owners(store: RunStore) -> None:
    """The log beside the file too, in a folder that others may read."""
    store.folder.chmod(0o755)
    files = list(begun(store).folder.glob("runs.sqlite*"))
    assert len(files) > 1 and not any(file.stat().st_mode & 0o077 for file in files)
