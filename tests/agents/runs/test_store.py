"""The store of runs: what it refuses, and what it says then."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import cut_off

from unspoken.agents import Agent, Workflow, execution
from unspoken.agents.runs import RunStore
from unspoken.agents.runs import packets as packets_module
from unspoken.agents.testing import ScriptedModel
from unspoken.channels import InputError, RunError, RunTimeout, StoreError, UnspokenError


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs", wait_s=0.05)


@pytest.fixture
def flow() -> Workflow:
    script = ScriptedModel({"a": "one", "b": "two"})
    agents = [Agent(name, script, prompt="go") for name in ("a", "b")]
    return Workflow("two", agents).connect("a", "b", "same_model_cache")


def test_a_run_is_not_kept_unless_asked(flow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an id, a store or a question, no store is opened."""
    monkeypatch.setattr(RunStore, "__init__", lambda *args, **settings: pytest.fail("opened"))
    assert flow.run().outputs == {"b": "two"}


def test_what_a_run_holds_is_its_owners(flow: Workflow, store: RunStore) -> None:
    """Inputs and texts stand in it: nobody else may read the folder or the file."""
    flow.run(store=store)
    assert store.folder.stat().st_mode & 0o077 == 0 == store.file.stat().st_mode & 0o077


def test_two_cannot_go_on_with_one_run(flow: Workflow, store: RunStore) -> None:
    """The second is told who has it; afterwards it can."""
    lock = store.lock("a")
    lock.acquire()
    with pytest.raises(StoreError, match=r"goes on in another place already \(process \d+\)") as no:
        flow.run(run_id="a", store=store)
    assert no.value.kind == "locked"
    lock.release()
    assert flow.run(run_id="a", store=store).outputs == {"b": "two"}


def test_a_store_that_is_locked_fails_the_run_and_keeps_it(flow: Workflow, store: RunStore) -> None:
    """The error says so; the run goes on once the store is free."""
    flow.run(run_id="a", store=store)
    cut_off(store, "a", 1)
    with closing(sqlite3.connect(store.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another process") as no:
            flow.run(run_id="a", store=store)
        assert no.value.kind == "locked"
        other.execute("ROLLBACK")
    assert flow.run(run_id="a", store=store).outputs == {"b": "two"}


def test_a_store_of_another_version_is_refused(flow: Workflow, store: RunStore) -> None:
    """It is not touched, and can be removed."""
    flow.run(run_id="a", store=store)
    store.close()
    with closing(sqlite3.connect(store.file)) as db, db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="store of version 99") as no:
        flow.run(run_id="a", store=store)
    assert no.value.kind == "version"
    store.clear()
    assert flow.run(run_id="a", store=store).outputs == {"b": "two"}


@pytest.mark.parametrize("content", [b"no database at all" * 99, None])
def test_a_file_of_something_else_is_refused(
    flow: Workflow, store: RunStore, content: bytes | None
) -> None:
    """Neither a text nor another program's database is written to."""
    store.folder.mkdir()
    if content is not None:
        store.file.write_bytes(content)
    else:
        with closing(sqlite3.connect(store.file)) as db, db:
            db.execute("CREATE TABLE theirs (x)")
    before = store.file.read_bytes()
    with pytest.raises(StoreError) as no:
        flow.run(run_id="a", store=store)
    assert no.value.kind == "broken" and store.file.read_bytes() == before


def test_a_full_disk_fails_the_run_and_keeps_it(
    flow: Workflow, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn that cannot be kept ends the run; it goes on when there is room."""

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packets_module, "replace_file", full)
        with pytest.raises(StoreError, match="is full") as no:
            flow.run(run_id="a", store=store, states=True)
    assert no.value.kind == "full" and store.get("a").status == "failed"
    assert flow.run(run_id="a", store=store, states=True).outputs == {"b": "two"}


@pytest.mark.parametrize("output", ["{{ a.text / 2 }}", "{{ [][0].x }}"])
def test_outputs_that_cannot_be_rendered_fail_a_kept_run(
    flow: Workflow, store: RunStore, output: str
) -> None:
    """The run is marked so, and its lock is free at once."""
    agents = [Agent("a", ScriptedModel({"a": "one"}), prompt="go")]
    with pytest.raises(UnspokenError) as caught:
        Workflow("broken", agents, outputs={"o": output}).run(run_id="a", store=store)
    assert store.get("a").status == "failed" and not store.lock("a").held_elsewhere
    assert caught.value is not None  # and with it the frames of the run


def test_a_run_that_takes_too_long_has_failed(
    flow: Workflow, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for one whose process died."""

    @contextmanager
    def late(seconds: float | None) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace()
        raise RunTimeout("the run took longer than its second")

    monkeypatch.setattr(execution, "within", late)
    with pytest.raises(RunTimeout):
        flow.run(run_id="a", store=store)
    assert (store.get("a").status, "took longer" in store.get("a").error) == ("failed", True)


def test_a_database_without_room_says_so(flow: Workflow, store: RunStore) -> None:
    """SQLite's own error is told as that of a full disk."""
    flow.run(run_id="a", store=store)
    with pytest.raises(StoreError) as no:
        store._change(lambda db: _fill(db))
    assert no.value.kind == "full" and store.get("a").status == "finished"


def _fill(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
    db.execute("CREATE TABLE big AS SELECT zeroblob(1000000) AS x")


def test_a_run_that_is_cancelled_does_not_go_on(flow: Workflow, store: RunStore) -> None:
    """Neither the process that runs it, which ends at its next turn, nor a later one."""
    flow.run(run_id="a", store=store)
    cut_off(store, "a", 1)
    assert store.cancel("a") and not store.cancel("a")
    with pytest.raises(StoreError, match="was cancelled"):
        flow.run(run_id="a", store=store)
    assert flow.run(run_id="a", store=store, anyway=True).outputs == {"b": "two"}


def test_a_cancel_reaches_the_process_that_runs(store: RunStore) -> None:
    """It ends where the next turn is handed over."""

    def answer(agent: str, turn: int, prompt: str) -> str:
        store.cancel("a")
        return "one"

    script = ScriptedModel(answer)
    flow = Workflow("two", [Agent(name, script, prompt="go") for name in ("a", "b")])
    with pytest.raises(RunError, match="run a was cancelled"):
        flow.connect("a", "b", "text").run(run_id="a", store=store)
    assert store.get("a").status == "cancelled" and list(script.prompts) == ["a"]


def test_a_run_that_is_not_there_is_an_error(flow: Workflow, store: RunStore) -> None:
    """To go on with a run it must have begun."""
    flow.run(run_id="a", store=store)
    with pytest.raises(StoreError, match="there is no run 'b'") as no:
        flow.resume("b", store=store)
    assert no.value.expected == "one of: a"


@pytest.mark.parametrize("name", ["", "../up", "a b", "-x"])
def test_an_id_is_a_plain_name(flow: Workflow, store: RunStore, name: str) -> None:
    """It stands in commands and in file names."""
    with pytest.raises(InputError, match="cannot be the id of a run"):
        flow.run(run_id=name, store=store)


def test_states_go_with_the_last_run_that_has_them(flow: Workflow, store: RunStore) -> None:
    """States are kept by content: two equal runs have them once."""
    flow.run(run_id="a", store=store, states=True)
    before = list(store.states.iterdir())
    flow.run(run_id="b", store=store, states=True)
    assert before and list(store.states.iterdir()) == before
    store.remove("a")
    assert list(store.states.iterdir()) == before
    store.remove("b")
    assert not list(store.states.iterdir())
