"""A worker and the event loops that it serves: those that stop, are gone, or have no room."""

import asyncio
import threading
from collections.abc import Callable, Generator

import anyio
import pytest
from processes import LIMIT_S

from unspoken.agents.engines.worker import Worker

pytestmark = [pytest.mark.anyio, pytest.mark.event_loops]


@pytest.fixture
def worker() -> Worker:
    return Worker("test")


def count(steps: int) -> Generator[str, None, str]:
    for number in range(steps):
        yield str(number)
    return " done"


def test_a_loop_that_stopped_midway_holds_up_no_other(worker: Worker) -> None:
    """A job of a loop that stands still waits by itself; it goes on when the loop does."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(worker.run(count(50), lambda event: event == "0" and loop.stop()))
    loop.run_forever()
    assert not task.done()

    async def another() -> str:
        with anyio.fail_after(LIMIT_S):
            return await worker.run(count(3), lambda event: None)

    assert anyio.run(another) == " done"
    assert loop.run_until_complete(task) == " done"
    loop.close()


def test_a_loop_that_was_closed_midway_holds_up_no_other(worker: Worker) -> None:
    """The job of a loop that is gone is closed, and the next loop has the device."""
    closed, gate = threading.Event(), threading.Event()

    def endless() -> Generator[int, None, None]:
        try:
            yield 0
            gate.wait(LIMIT_S)
            yield 1
        finally:
            closed.set()

    async def left() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        tasks.append(asyncio.ensure_future(worker.run(endless(), lambda event: loop.stop())))

    tasks: list[asyncio.Future[None]] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(left())
    loop.run_forever()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    gate.set()

    async def another() -> str:
        with anyio.fail_after(LIMIT_S):
            return await worker.run(count(3), lambda event: None)

    assert anyio.run(another) == " done"
    assert closed.wait(LIMIT_S)


@pytest.fixture
def one_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than one event of a job waits for its loop."""
    monkeypatch.setattr("unspoken.agents.engines.worker.AHEAD", 1)


@pytest.mark.usefixtures("one_ahead")
async def test_a_job_waits_until_its_events_have_room(worker: Worker) -> None:
    """It sits out rounds until whoever follows says so; others have the device meanwhile."""
    kept: list[Callable[[], None]] = []
    events: list[str] = []
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run, count(2), events.append, None, kept.append)
            while not kept:  # noqa: ASYNC110
                await anyio.sleep(0.001)
            assert await worker.run(count(3), lambda event: None) == " done"
            assert events == ["0"]
            kept.pop()()
            while not kept:  # noqa: ASYNC110
                await anyio.sleep(0.001)
            assert events == ["0", "1"]
            kept.pop()()


@pytest.mark.usefixtures("one_ahead")
async def test_a_job_that_waits_for_room_can_be_cancelled(worker: Worker) -> None:
    """It is closed, though nobody ever makes room."""
    job = count(2)
    with anyio.fail_after(LIMIT_S), anyio.move_on_after(0.1) as scope:
        await worker.run(job, lambda event: None, when_room=lambda go_on: None)
    assert scope.cancelled_caught and job.gi_frame is None
