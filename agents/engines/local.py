"""One worker per device: a thread that runs every forward on it, one operation at a time."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import torch

__all__ = ["Worker", "holding", "worker_for"]

Event = TypeVar("Event")
Outcome = TypeVar("Outcome")


@dataclass(eq=False)
class _Job(Generic[Event, Outcome]):
    steps: Generator[Event, None, Outcome]
    emit: Callable[[Event], None]
    loop: anyio.lowlevel.EventLoopToken
    done: anyio.Event
    stop: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome | None = None
    error: BaseException | None = None


class Worker:
    """Runs jobs on one device. A job is a generator: each step is one operation, each yielded value
    an event.

    Jobs that are ready together take turns step by step. This is where ready steps of one model
    will be batched.

    Args:
        name: Name of its thread.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(
        self, steps: Generator[Event, None, Outcome], emit: Callable[[Event], None]
    ) -> Outcome:
        """Run a job to its end, calling `emit` on the event loop with every event.

        A cancel is seen between two operations: this returns once the job has let go of the device.

        Raises:
            Exception: Whatever the job raised.
        """
        job = _Job(steps, emit, anyio.lowlevel.current_token(), anyio.Event())
        self._thread.submit(self._step, job)
        try:
            await job.done.wait()
        except BaseException:
            job.stop.set()
            with anyio.CancelScope(shield=True):
                await job.done.wait()
            raise
        if job.error is not None:
            raise job.error
        return job.outcome  # type: ignore[return-value]  # set whenever there is no error

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep the device from all jobs: this waits for the operation at hand, and they wait for
        the block's end.
        """
        held, over = threading.Event(), threading.Event()

        def wait() -> None:
            held.set()
            over.wait()

        self._thread.submit(wait)
        try:
            held.wait()
            yield
        finally:
            over.set()

    def _step(self, job: _Job[Any, Any]) -> None:
        """Run one operation of a job, and queue the next behind those of the other jobs."""
        try:
            if job.stop.is_set():
                job.steps.close()
            else:
                with torch.no_grad():
                    event = next(job.steps)
                self._on_loop(job, job.emit, event)
                self._thread.submit(self._step, job)
                return
        except StopIteration as end:
            job.outcome = end.value
        except BaseException as error:
            job.steps.close()
            job.error = error
        self._on_loop(job, job.done.set)

    def _on_loop(self, job: _Job[Any, Any], call: Callable[..., None], *args: Any) -> None:
        try:
            anyio.from_thread.run_sync(call, *args, token=job.loop)
        except anyio.RunFinishedError:
            job.stop.set()


@cache
def worker_for(device: torch.device) -> Worker:
    """The worker of a device, one for the whole process, whoever asks."""
    return Worker(f"unspoken-{device}")


@contextmanager
def holding(devices: Iterable[torch.device]) -> Iterator[None]:
    """Keep some devices for work that is no job, such as a fit.

    They are taken in one order, so that two who want the same ones never wait for each other. On
    the thread of an event loop nothing is held: a job may be waiting for that very loop, to emit an
    event.
    """
    with ExitStack() as stack:
        for device in () if _on_a_loop() else sorted(set(devices), key=str):
            stack.enter_context(worker_for(device).hold())
        yield


def _on_a_loop() -> bool:
    try:
        anyio.lowlevel.current_token()
    except RuntimeError:
        return False
    return True
