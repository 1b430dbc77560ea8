"""What a run that goes on has from the store."""

from pathlib import Path

import pytest

from unspoken.agents.runs.journal import Journal
from unspoken.agents.runs.records import Origin, TurnRecord
from unspoken.agents.runs.store import RunStore
from unspoken.channels.errors import RunError


def test_a_turn_that_is_tried_again_is_had_again(tmp_path: Path) -> None:
    """A pass computed before counts once, and of one that was not the run says that it failed."""
    store = RunStore(tmp_path, durable=False)
    store.begin("run", Origin(version="", workflow={"name": "w"}, models={}, inputs={}))
    record = TurnRecord(
        agent="a", turn=1, item=-1, digest="first", tokens=(1,), finish="stop", usage={}
    )
    store.add_turn("run", record)
    store.hand_over("run", 0, "a", 1, "")
    journal = Journal(store, "run")
    for _ in range(2):
        assert journal.take("a", 1, None, "first") == record
    assert journal.restored == 1
    with pytest.raises(RunError, match="had failed"):
        journal.take("a", 1, None, "second")
    store.close()
