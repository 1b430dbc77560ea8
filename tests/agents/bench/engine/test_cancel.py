"""The benchmark of runs that are cancelled."""

import asyncio
from typing import Any

import anyio
import pytest

from unspoken.agents.bench.engine import cancel
from unspoken.agents.testing import tiny_model
from unspoken.agents.workflow import Workflow


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"MOMENTS": 3, "TOKENS": 48, "NEW": 4, "SOLVERS": 2, "ITEMS": 2, "ROUNDS": 1}
    for name, value in sizes.items():
        monkeypatch.setattr(cancel, name, value)


def test_cancel_has_its_figures() -> None:
    """Every run is over, nothing is left, and the last run writes what the first has written."""
    rows, summary = cancel.measure(tiny_model(), progress=lambda line: None)
    (cancelled,) = [row for row in rows if row["of"] == "cancelled"]
    assert cancelled["runs"] == 3 and cancelled["same_answers_afterwards"] is True
    worst = cancelled["worst_ms"] - rows[0]["longest_gap_ms"]
    assert summary["worst_ms_beyond_one_round"] == pytest.approx(worst, abs=0.2)
    assert summary["leaks"] == 0


def test_what_a_run_leaves_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that a cancelled run forgets is one."""
    tasks, arun = [], Workflow.arun

    async def forgetful(*args: Any, **inputs: Any) -> Any:
        tasks.append(asyncio.create_task(anyio.sleep(60)))
        return await arun(*args, **inputs)

    monkeypatch.setattr(Workflow, "arun", forgetful)
    rows, summary = cancel.measure(tiny_model(), progress=lambda line: None)
    (row,) = [row for row in rows if row.get("what") == "tasks"]
    assert row["after"] - row["before"] == 3 and summary["leaks"] >= 1
