"""What a run that goes on has from the store."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from unspoken.agents.runs.journal import Journal
from unspoken.agents.runs.records import Origin, Question, TurnRecord
from unspoken.agents.runs.store import Over, RunStore
from unspoken.channels.errors import RunError

RECORD = TurnRecord(
    agent="a", turn=1, item=-1, digest="first", tokens=(1,), finish="stop", usage={}
)


def test_a_turn_that_is_tried_again_is_had_again(tmp_path: Path) -> None:
    """A pass computed before counts once, and of one that was not the run says that it failed."""
    store = RunStore(tmp_path, durable=False)
    store.begin("run", Origin(version="", workflow={"name": "w"}, models={}, inputs={}))
    store.add_turn("run", RECORD)
    store.hand_over("run", [(0, "a", 1, "")])
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
    await journal.answer_to(Question(id="q", agent="a", turn=1, kind="approve", text=""))
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
