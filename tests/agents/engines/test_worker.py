"""The worker of a device: whose turn it is, what a cancel waits for, and what is left behind."""

import gc
import threading
import weakref
from collections.abc import Generator

import anyio
import pytest
import torch
from processes import LIMIT_S

from unspoken.agents.engines.worker import Worker, Workers
from unspoken.agents.models.weights import Weights

pytestmark = [pytest.mark.anyio, pytest.mark.event_loops]


@pytest.fixture
def worker() -> Worker:
    return Worker("test")


def count(steps: int, name: str = "") -> Generator[str, None, str]:
    for number in range(steps):
        yield f"{name}{number}"
    return f"{name} done"


async def test_a_job_gives_its_events_and_its_outcome(worker: Worker) -> None:
    """Every yielded value is emitted, in order, and the generator's value returned."""
    events: list[str] = []
    assert await worker.run(count(3), events.append) == " done"
    assert events == ["0", "1", "2"]


async def test_events_are_emitted_on_the_event_loop(worker: Worker) -> None:
    """Operations run on the worker's thread, their events on the caller's."""
    threads = []

    def steps() -> Generator[str, None, int]:
        yield "an event"
        return threading.get_ident()

    ran = await worker.run(steps(), lambda event: threads.append(threading.get_ident()))
    assert threads == [threading.get_ident()] and ran != threading.get_ident()


async def test_jobs_take_turns_step_by_step(worker: Worker) -> None:
    """Two jobs that are ready together go on alternately."""
    steps: list[str] = []
    gate = threading.Event()

    def stepping(name: str) -> Generator[str, None, None]:
        for step in count(3, name):
            steps.append(step)
            yield step

    def held() -> Generator[str, None, None]:
        gate.wait(LIMIT_S)
        yield from ()

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run, held(), print)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(worker.run, stepping("a"), print)
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(worker.run, stepping("b"), print)
            await anyio.wait_all_tasks_blocked()
            gate.set()
    assert steps == ["a0", "b0", "a1", "b1", "a2", "b2"]


async def test_the_event_loop_goes_on_during_an_operation(worker: Worker) -> None:
    """An operation that waits for the event loop's own doing comes through."""
    inside, release = anyio.Event(), threading.Event()
    token = anyio.lowlevel.current_token()

    def steps() -> Generator[None, None, bool]:
        anyio.from_thread.run_sync(inside.set, token=token)
        return release.wait(LIMIT_S)
        yield

    async def free() -> None:
        await inside.wait()
        release.set()

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(free)
            assert await worker.run(steps(), lambda event: None)


async def test_a_cancel_waits_for_the_operation_under_way_and_no_other(worker: Worker) -> None:
    """After a cancel the operation is over, none followed, and the generator is closed."""
    started, release = anyio.Event(), threading.Event()
    token = anyio.lowlevel.current_token()
    done: list[int] = []
    closed: list[str] = []

    def endless() -> Generator[int, None, None]:
        try:
            for number in range(10_000):
                anyio.from_thread.run_sync(started.set, token=token)
                release.wait(LIMIT_S)
                done.append(number)
                yield number
        finally:
            closed.append(threading.current_thread().name)

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run, endless(), lambda event: None)
            await started.wait()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
            assert (done, closed) == ([], [])
            release.set()
    assert done == [0]
    assert closed and closed[0].startswith("test")


async def test_a_job_cancelled_while_it_waits_never_starts(worker: Worker) -> None:
    """A cancel reaches a job that is still behind others."""
    gate, ran = threading.Event(), []

    def held() -> Generator[None, None, None]:
        gate.wait(LIMIT_S)
        yield from ()

    def never() -> Generator[None, None, None]:
        ran.append(1)
        yield

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run, held(), lambda event: None)
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as inner:
            inner.start_soon(worker.run, never(), lambda event: None)
            await anyio.wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.wait_all_tasks_blocked()
            gate.set()
    assert ran == []


async def test_an_error_surfaces_and_the_worker_goes_on(worker: Worker) -> None:
    """What a job raises is raised to its caller alone."""

    def broken() -> Generator[int, None, None]:
        yield 1
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        await worker.run(broken(), lambda event: None)
    assert await worker.run(count(1), lambda event: None) == " done"


async def test_an_error_of_the_listener_closes_the_job(worker: Worker) -> None:
    """Where nobody can take its events, a job is closed and the error raised."""
    closed = []

    def steps() -> Generator[int, None, None]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    def refuse(event: int) -> None:
        raise ValueError("nobody listens")

    job = steps()
    with pytest.raises(ValueError, match="nobody listens"):
        await worker.run(job, refuse)
    assert closed == [True]


async def test_operations_run_without_gradients(worker: Worker) -> None:
    """No step builds a graph, and the caller's own mode is left alone."""

    def steps() -> Generator[bool, None, bool]:
        yield torch.is_grad_enabled()
        return torch.is_grad_enabled()

    seen: list[bool] = []
    assert await worker.run(steps(), seen.append) is False
    assert seen == [False] and torch.is_grad_enabled()


async def test_a_finished_job_leaves_no_tensor_behind(worker: Worker) -> None:
    """The worker keeps neither the events nor the outcome of a job."""

    def steps() -> Generator[torch.Tensor, None, torch.Tensor]:
        yield torch.zeros(3)
        return torch.zeros(3)

    kept: list[weakref.ref[torch.Tensor]] = []
    outcome = await worker.run(steps(), lambda event: kept.append(weakref.ref(event)))
    kept.append(weakref.ref(outcome))
    del outcome
    await worker.run(count(1), lambda event: None)  # the last job's frame is gone once another ran
    gc.collect()
    assert [one() for one in kept] == [None, None]


def test_a_device_has_one_worker() -> None:
    """Engines that share their workers share each device's time."""
    workers = Workers()
    assert workers.of(torch.device("cpu")) is workers.of(torch.device("cpu"))
    assert workers.of(torch.device("cpu")) is not workers.of(torch.device("meta"))


def test_a_worker_serves_one_event_loop_after_another() -> None:
    """A program may run several event loops in turn."""
    worker = Worker("test")

    async def start() -> None:
        assert await worker.run(count(2), lambda event: None) == " done"

    anyio.run(start)
    anyio.run(start)


async def test_held_weights_are_not_computed_on(worker: Worker) -> None:
    """A job stops between two operations while somebody holds its weights, and then goes on."""
    weights, done, seen = Weights(), list[int](), list[int]()

    def steps() -> Generator[int, None, None]:
        for number in range(500):
            done.append(number)
            yield number

    def fit() -> None:
        with weights.lock:
            seen.append(len(done))
            threading.Event().wait(0.1)
            seen.append(len(done))

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(worker.run, steps(), lambda event: None, weights)
            await anyio.to_thread.run_sync(fit)
    assert seen[0] == seen[1] and len(done) == 500


async def test_others_go_on_while_weights_are_held(worker: Worker) -> None:
    """A job that waits for its weights keeps nobody else from the device."""
    weights = Weights()
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with weights.lock:
            held.set()
            over.wait(LIMIT_S)

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, hold)
            await anyio.to_thread.run_sync(held.wait)
            tasks.start_soon(worker.run, count(1), lambda event: None, weights)
            assert await worker.run(count(3), lambda event: None) == " done"
            over.set()


async def test_a_job_that_waits_for_weights_can_be_cancelled(worker: Worker) -> None:
    """Nobody waits for the end of a fit to stop a turn."""
    weights = Weights()
    with weights.lock, anyio.move_on_after(0.1) as scope:
        await anyio.to_thread.run_sync(lambda: None)
        await worker.run(count(3), lambda event: None, weights)
    assert scope.cancelled_caught


async def test_a_job_that_cannot_be_closed_is_over(worker: Worker) -> None:
    """Its error is raised, and nobody waits for ever."""

    def stubborn() -> Generator[str, None, None]:
        try:
            yield "a"
            raise ValueError("first")
        finally:
            raise RuntimeError("while closing")

    with anyio.fail_after(LIMIT_S), pytest.raises((ValueError, RuntimeError)):
        await worker.run(stubborn(), lambda event: None)
    assert await worker.run(count(1), lambda event: None) == " done"
