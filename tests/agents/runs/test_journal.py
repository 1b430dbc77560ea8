"""What a run that goes on has from the store."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from unspoken.agents import Agent, Workflow
from unspoken.agents.runs.journal import Journal
from unspoken.agents.runs.records import Origin, Question, TurnRecord
from unspoken.agents.runs.store import Over, RunStore
from unspoken.channels.errors import AgentError, RunError, StoreError

RECORD = TurnRecord(
    agent="a", turn=1, item=-1, digest="first", tokens=(1,), finish="stop", usage={}
)


def test_a_turn_that_is_tried_again_is_had_again(tmp_path: Path) -> None:
    """A pass computed before counts once, and of one that was not the run says that it failed."""
    store = RunStore(tmp_path, durable=False)
    store.begin("run", Origin(version="", workflow={"name": "w"}, models={}, inputs={}))
    store.hand_over("run", [(0, "a", 1, "")], computed=[("run", RECORD, ())])
    journal = Journal(store, "run")
    for _ in range(2):
        assert journal.take("a", 1, None, "first") == RECORD
    assert journal.restored == 1
    with pytest.raises(RunError, match="had failed"):
        journal.take("a", 1, None, "second")
    store.close()


@pytest.mark.anyio
async def test_a_turn_is_written_down_with_its_end(tmp_path: Path) -> None:
    """Both are one transaction; only an item, whose turn may go on for long, is not waited for."""
    store = RunStore(tmp_path, durable=False)
    store.begin("run", Origin(version="", workflow={"name": "w"}, models={}, inputs={}))
    journal = Journal(store, "run")
    await journal.add(RECORD)
    assert store.turns("run") == []
    await journal.handed_over("a", 1, "words")
    assert store.turns("run") == [RECORD]
    item = replace(RECORD, agent="b", item=0)
    await journal.add(item)
    assert store.turns("run") == [RECORD, item]
    store.close()


@pytest.mark.anyio
async def test_a_turn_is_written_down_before_a_person_or_a_tool_is_asked(tmp_path: Path) -> None:
    """Either may take as long as it likes, and a tool has effects that others see."""
    store = RunStore(tmp_path, durable=False)
    store.begin("run", Origin(version="", workflow={"name": "w"}, models={}, inputs={}))
    journal, kept = Journal(store, "run"), list[list[TurnRecord]]()
    await journal.add(RECORD)
    await journal.answer_to(Question(id="q", agent="c.1/a", turn=1, kind="approve", text=""))
    assert store.turns("run") == [RECORD]

    async def look() -> None:
        kept.append(store.turns("run"))

    await journal.add(replace(RECORD, turn=2))
    await journal.call(("a", 2, None), "look", "{}", look)
    assert kept == [[RECORD, replace(RECORD, turn=2)]]
    store.close()


@pytest.mark.anyio
async def test_turns_that_end_together_are_one_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that end while one is being written wait for it, and are then written at once."""
    store, written = RunStore(tmp_path, durable=False), list[int]()
    store.begin("run", Origin(version="", workflow={"name": "w"}, models={}, inputs={}))
    hand_over = RunStore.hand_over

    def noted(self: RunStore, run: str, over: Sequence[Over], *more: Any) -> bool:
        written.append(len(over))
        return hand_over(self, run, over, *more)

    monkeypatch.setattr(RunStore, "hand_over", noted)
    journal = Journal(store, "run")
    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(journal.handed_over, f"a{number}", 1, "")
    assert written == [1, 4]
    assert store.order("run") == [(f"a{number}", 1) for number in range(5)]
    store.close()


def begun(folder: Path) -> RunStore:
    """A store with one run."""
    store = RunStore(folder, durable=False)
    store.begin("run", Origin(version="", workflow={"name": "w"}, models={}, inputs={}))
    return store


@pytest.mark.anyio
async def test_a_turn_is_written_down_with_the_first_event_after_it(tmp_path: Path) -> None:
    """Also of a run inside: what was told is in the store with its words, or not at all."""
    store = begun(tmp_path)
    journal = Journal(store, "run")
    inner = await journal.opened_inside("c.1")
    await journal.add(replace(RECORD, agent="b"))
    await inner.add(RECORD)
    journal.told.note({"event": "TurnFinished", "agent": "b", "text": "x"})
    await journal.handed_over("a", 1, "")
    assert len(store.told("run")) == 1
    assert [record.agent for record in store.turns("run")] == ["b"]
    assert store.turns("run/c.1") == [RECORD]
    store.close()


@pytest.mark.anyio
async def test_a_run_that_is_cancelled_writes_down_what_has_ended(tmp_path: Path) -> None:
    """Turns that wait for their place in the store are in it all the same, in order."""
    store = begun(tmp_path)
    journal = Journal(store, "run")
    async with anyio.create_task_group() as tasks, journal._pending.lock:
        for number in range(3):
            await journal.add(replace(RECORD, agent=f"a{number}"))
            tasks.start_soon(journal.handed_over, f"a{number}", 1, "")
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await journal.flush(quiet=True)
    assert store.order("run") == [(f"a{number}", 1) for number in range(3)]
    assert [record.agent for record in store.turns("run")] == ["a0", "a1", "a2"]
    store.close()


@pytest.mark.anyio
async def test_a_call_waits_for_its_own_turn_alone(tmp_path: Path) -> None:
    """Others may be writing for long."""
    store = begun(tmp_path)
    journal, called = Journal(store, "run"), list[str]()
    await journal.add(RECORD)

    async def look() -> None:
        called.append("b")

    async with journal._pending.lock:
        await journal.call(("b", 1, None), "look", "{}", look)
    assert called == ["b"]
    store.close()


@pytest.mark.anyio
async def test_each_turn_raises_a_fault_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that is raised in many tasks the traceback would grow."""
    store, errors = begun(tmp_path), list[StoreError]()

    def full(*args: Any) -> bool:
        raise StoreError("the disk is full", kind="full")

    monkeypatch.setattr(RunStore, "hand_over", full)
    journal = Journal(store, "run")

    async def end(agent: str) -> None:
        with pytest.raises(StoreError, match="full") as error:
            await journal.handed_over(agent, 1, "")
        errors.append(error.value)

    async with anyio.create_task_group() as tasks:
        for agent in "ab":
            tasks.start_soon(end, agent)
    first, second = errors
    assert first is not second and second.__cause__ is first and second.kind == "full"
    store.close()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_what_asyncio_cancels_is_written_down_again(tmp_path: Path) -> None:
    """A task that is cancelled past its shield leaves open whether it was written."""
    store, began, go_on = begun(tmp_path), threading.Event(), threading.Event()
    hand_over = store.hand_over
    journal = Journal(store, "run")

    def slow(*args: Any) -> bool:
        began.set()
        go_on.wait()
        return hand_over(*args)

    store.hand_over = slow  # type: ignore[method-assign]
    await journal.add(RECORD)
    journal.told.note({"event": "TurnFinished", "agent": "a", "text": "x"})
    task = asyncio.create_task(journal.handed_over("a", 1, ""))
    await asyncio.to_thread(began.wait)
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await journal.flush()
    assert store.turns("run") == [RECORD] and store.order("run") == [("a", 1)]
    assert len(store.told("run")) == 1
    store.close()


def test_what_finished_is_kept_though_another_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told as finished while it waited for its place in the store."""
    store, waits = RunStore(tmp_path, durable=False), list[str]()

    async def stuck(self: Journal, agent: str, turn: int, text: str) -> None:
        waits.append(agent)
        await anyio.sleep_forever()

    async def fail(text: str) -> str:
        while not waits:
            await anyio.lowlevel.checkpoint()
        raise ValueError("no")

    monkeypatch.setattr(Journal, "handed_over", stuck)
    good, bad = Agent("good", str.upper, prompt="x"), Agent("bad", fail, prompt="y")
    with pytest.raises(AgentError, match="no"):
        Workflow("pair", [good, bad]).run(run_id="run", store=store)
    assert [record.agent for record in store.turns("run")] == ["good"]
    assert any('"TurnFinished"' in text for text in store.told("run"))
    store.close()
