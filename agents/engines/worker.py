"""A thread per device that runs jobs one operation at a time.

A job is a generator, such as a turn (see `unspoken.agents.engines.turn`). The device's thread runs
one step of it and posts its event to the event loop; from there the next step is queued behind
those of the other jobs. So jobs that are ready together advance in turn, a cancel never waits for
more than one operation, and an event loop that stands still or is gone holds up its own jobs alone.
This queue is where ready steps of one model will be batched.
"""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import anyio
import torch

from unspoken.agents.engines.event_loop import Post, post_to_loop
from unspoken.agents.models.weights import Weights
from unspoken.channels.storage.forks import renewed_when_forked, when_forked

Event = TypeVar("Event")
Outcome = TypeVar("Outcome")

BUSY = 0.02
"""Seconds that a device's thread waits for weights that somebody holds before it tries others."""


WhenRoom = Callable[[Callable[[], None]], None]
"""Makes a call on the event loop once whoever follows the events has room for more of them."""


def at_once(go_on: Callable[[], None]) -> None:
    """The `WhenRoom` of events that nobody stores."""
    go_on()


@dataclass(eq=False)
class _Job(Generic[Event, Outcome]):
    """A job under way; `waits` while it is kept until its events have room."""

    steps: Generator[Event, None, Outcome]
    emit: Callable[[Event], None]
    weights: Weights | None
    when_room: WhenRoom
    post: Post
    done: anyio.Event
    stop: threading.Event = field(default_factory=threading.Event)
    waits: bool = False
    outcome: Outcome | None = None
    error: BaseException | None = None


class Worker:
    """Runs jobs on one device. A job is a generator: each step is one operation.

    Args:
        name: Name of its thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.renew()
        renewed_when_forked(self)

    def renew(self) -> None:
        """Begin with a thread of its own and no jobs."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self._name)
        # Both are read and written on that thread alone.
        self._active = self._blocked = 0

    async def run(
        self,
        steps: Generator[Event, None, Outcome],
        emit: Callable[[Event], None],
        weights: Weights | None = None,
        when_room: WhenRoom = at_once,
    ) -> Outcome:
        """Run a job to its end; a cancel is seen between two operations.

        Args:
            steps: The job.
            emit: Called on the event loop with every event.
            weights: What it computes on; each step has them to itself.
            when_room: Asked after every event; the next step waits for it.

        Raises:
            Exception: Whatever the job raised.
        """
        job = _Job(steps, emit, weights, when_room, post_to_loop(), anyio.Event())
        self._thread.submit(self._begin, job)
        try:
            await job.done.wait()
        except GeneratorExit:  # its event loop is gone, and nothing can be waited for
            job.stop.set()
            raise
        except BaseException:
            job.stop.set()
            self._go_on(job)
            with anyio.CancelScope(shield=True):
                await job.done.wait()
            raise
        if job.error is not None:
            raise job.error
        return job.outcome  # type: ignore[return-value]  # set whenever there is no error

    def _queue(self, job: _Job[Any, Any]) -> None:
        """Queue the job's next step."""
        self._thread.submit(self._step, job)

    def _begin(self, job: _Job[Any, Any]) -> None:
        self._active += 1
        self._step(job)

    def _step(self, job: _Job[Any, Any]) -> None:
        """Run one operation of a job, on the device's thread."""
        try:
            if not job.stop.is_set():
                advanced, event = self._advance(job)
                if not advanced:
                    self._queue(job)
                elif not self._post(job, partial(self._tell, job, event)):
                    self._end(job)
                return
        except StopIteration as end:
            job.outcome = end.value
        except BaseException as error:
            job.error = error
        self._end(job)
        self._post(job, job.done.set)

    def _end(self, job: _Job[Any, Any]) -> None:
        try:
            job.steps.close()
        except BaseException as error:  # a job that cannot even be closed is over all the same
            job.error = job.error or error
        self._active -= 1

    def _advance(self, job: _Job[Any, Any]) -> tuple[bool, Any]:
        """One operation and its event; or none, where somebody holds the weights for long.

        Other jobs go on meanwhile: only where all of them are blocked does the thread wait.
        """
        lock = None if job.weights is None else job.weights.lock
        patience = BUSY if self._blocked >= self._active - 1 else 0
        if lock is not None and not lock.acquire(timeout=patience):
            self._blocked += 1
            return False, None
        self._blocked = 0
        operation = nullcontext() if job.weights is None else job.weights.one_operation()
        try:
            with torch.no_grad(), operation:
                return True, next(job.steps)
        finally:
            if lock is not None:
                lock.release()

    def _post(self, job: _Job[Any, Any], call: Callable[[], object]) -> bool:
        """Call on the job's event loop; whether there still is one that may wait for the job."""
        try:
            job.post(call)
        except RuntimeError:
            return False
        return True

    def _tell(self, job: _Job[Any, Any], event: Any) -> None:
        """On the event loop: tell of an event, then queue the next step behind the other jobs'."""
        if job.stop.is_set():  # cancelled during the step: nobody follows any more
            self._queue(job)
            return
        try:
            job.emit(event)
            job.waits = True
            job.when_room(partial(self._go_on, job))
        except Exception as error:
            job.error = error
            job.stop.set()
            self._queue(job)

    def _go_on(self, job: _Job[Any, Any]) -> None:
        """On the event loop: queue the next step of a job that was kept."""
        if job.waits:
            job.waits = False
            self._queue(job)


def _compute_alone() -> None:
    """torch's own threads stay behind at a fork, and waiting for them would take for ever."""
    torch.set_num_threads(1)


when_forked(_compute_alone)


class Workers:
    """One worker per device, for all engines that are to share the devices' time."""

    def __init__(self) -> None:
        self._workers: dict[torch.device, Worker] = {}

    def of(self, device: torch.device) -> Worker:
        """The worker of a device."""
        if device not in self._workers:
            self._workers[device] = Worker(f"unspoken-{device}")
        return self._workers[device]
