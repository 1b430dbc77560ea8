"""A thread per device that computes the turns of all agents there, round by round.

A job is a generator. It yields events, None where others may go first, and, if it is a turn, asks
(see `unspoken.agents.engines.asks`). In a round the thread takes every job to its next ask, answers
the asks of each model in one forward, and posts all events to their event loops at once. It never
waits for a loop: a job whose events nobody takes sits out rounds until there is room. A cancel
waits for the round under way, and an event loop that stands still or is gone holds up its own jobs
alone.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Generic, TypeVar

import anyio
import torch

from unspoken.agents.engines.asks import Answer, Compute, compute, slices
from unspoken.agents.engines.event_loop import Post, post_all, post_to_loop
from unspoken.agents.engines.teams import end_team, ending_team
from unspoken.agents.models.weights import Weights
from unspoken.channels.storage.forks import renewed_when_forked, when_forked

Event = TypeVar("Event")
Outcome = TypeVar("Outcome")

BUSY = 0.02
"""Seconds that a device's thread waits for weights that somebody holds before it tries others."""

AHEAD = 4
"""Events of a job that may wait for their event loop; with more, the job sits out rounds."""

STARTS = 0.02
"""Seconds that a round spends on other work than forwards, while some wait for a forward."""

WhenRoom = Callable[[Callable[[], None]], None]
"""Makes a call on the event loop once whoever follows the events has room for more of them."""


def at_once(go_on: Callable[[], None]) -> None:
    """The `WhenRoom` of events that nobody stores."""
    go_on()


@dataclass(eq=False)
class _Job(Generic[Event, Outcome]):
    """A job under way.

    Attributes:
        flows: Whether an event ends no step.
        ask: What it waits for; None where it can go on.
        answer: What it asked for.
        events: Events of this round.
        sent, told: Events posted to its loop, and those of them that were taken there.
    """

    steps: Generator[Any, Any, Outcome]
    emit: Callable[[Event], None]
    weights: Weights | None
    when_room: WhenRoom
    post: Post
    done: anyio.Event
    flows: bool
    stop: threading.Event = field(default_factory=threading.Event)
    ask: Compute | None = None
    answer: Answer | Exception | None = None
    events: list[Any] = field(default_factory=list)
    sent: int = 0
    told: int = 0
    over: bool = False
    outcome: Outcome | None = None
    error: BaseException | None = None

    @property
    def held(self) -> bool:
        """Whether too many of its events wait for their loop."""
        return self.sent - self.told >= AHEAD


class Worker:
    """Runs jobs on one device.

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
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._new: deque[_Job[Any, Any]] = deque()
        self._runs = False
        # Of that thread alone.
        self._jobs: deque[_Job[Any, Any]] = deque()
        self._patience = 0.0

    async def run(
        self,
        steps: Generator[Any, Any, Outcome],
        emit: Callable[[Event], None],
        weights: Weights | None = None,
        when_room: WhenRoom = at_once,
        *,
        flows: bool = False,
    ) -> Outcome:
        """Run a job to its end; a cancel is seen between two rounds.

        Args:
            steps: The job.
            emit: Called on the event loop with every event.
            weights: What it computes on; each step has them to itself.
            when_room: Asked after every round's events; with too many untaken the job waits.
            flows: Whether it goes on after an event, as a turn does, until it asks or pauses. Else
                each event ends a step, and others go first.

        Raises:
            Exception: Whatever the job raised.
        """
        job = _Job(steps, emit, weights, when_room, post_to_loop(), anyio.Event(), flows)
        self._take(job)
        try:
            await job.done.wait()
        except GeneratorExit:  # its event loop is gone, and nothing can be waited for
            self._stop(job)
            raise
        except BaseException:
            self._stop(job)
            with anyio.CancelScope(shield=True):
                await job.done.wait()
            raise
        if job.error is not None:
            raise job.error
        return job.outcome  # type: ignore[return-value]  # set whenever there is no error

    def _take(self, job: _Job[Any, Any]) -> None:
        with self._lock:
            self._new.append(job)
            self._wake.set()
            if not self._runs:
                self._runs = True
                end_team()  # of the event loop's thread, should it have computed
                self._thread.submit(ending_team(self._serve))

    def _stop(self, job: _Job[Any, Any]) -> None:
        job.stop.set()
        self._wake.set()

    def _serve(self) -> None:
        """Rounds until there is no job, on the device's thread."""
        while True:
            with self._lock:
                self._wake.clear()
                self._jobs.extend(self._new)
                self._new.clear()
                if not self._jobs:
                    self._runs = False
                    return
            try:
                went_on, blocked = self._round()
            except BaseException as error:  # a fault of the engine's own: nobody waits for ever
                self._fail_all(error)
                continue
            # Only where nobody can go on does the thread wait for weights.
            self._patience = BUSY if blocked and not went_on else 0.0
            if not (went_on or blocked):
                self._wake.wait()

    def _fail_all(self, error: BaseException) -> None:
        for job in self._jobs:
            job.error = job.error or error
            self._end(job)
            job.events.clear()  # they may be what went wrong
        self._tell_all()

    def _round(self) -> tuple[bool, bool]:
        """One round: whether any job went on, and whether one waits for weights."""
        began, went_on, blocked = perf_counter(), False, False
        for _ in range(len(self._jobs)):
            job = self._jobs[0]
            if job.stop.is_set():
                self._end(job)
                went_on = True
            elif not (job.ask or job.held):
                late = perf_counter() - began > STARTS
                if late and any(other.ask for other in self._jobs):
                    break
                moved = self._advance(job)
                went_on |= moved
                blocked |= not moved
            # Whoever went on stands behind those that did not get to it.
            self._jobs.rotate(-1)
        computed, waits = self._compute()
        self._tell_all()
        return went_on or computed, blocked or waits

    def _compute(self) -> tuple[bool, bool]:
        """Answer the asks of every model, and take those jobs on."""
        groups: dict[int, list[_Job[Any, Any]]] = {}
        for job in self._jobs:
            if job.ask and not (job.over or job.held):
                groups.setdefault(id(job.ask.model.batch_key), []).append(job)
        went_on = waits = False
        for jobs in groups.values():
            if self._answer(jobs):
                went_on = True
                for job in jobs:
                    if job.answer is not None:
                        self._advance(job)
            else:
                waits = True
        return went_on, waits

    def _answer(self, jobs: list[_Job[Any, Any]]) -> bool:
        """Answer asks of one model in one forward; False where somebody holds its weights."""
        asks = [job.ask for job in jobs if job.ask is not None]
        counts = slices(asks)
        chosen = [(job, ask, n) for job, ask, n in zip(jobs, asks, counts, strict=True) if n]
        with self._having(asks[0].model.weights) as had:
            if not had:
                return False
            answers = compute([(ask, count) for _, ask, count in chosen])
            for (job, _, _), answer in zip(chosen, answers, strict=True):
                job.ask, job.answer = None, answer
        return True

    def _advance(self, job: _Job[Any, Any]) -> bool:
        """Take a job to its next ask or pause; False where somebody holds its weights."""
        with self._having(job.weights) as had:
            if not had:
                return False
            answer, job.answer, job.ask = job.answer, None, None
            try:
                while True:
                    if isinstance(answer, Exception):
                        step = job.steps.throw(answer)
                    else:
                        step = job.steps.send(answer)
                    answer = None
                    if isinstance(step, Compute):
                        job.ask = step
                        return True
                    if step is None:
                        return True
                    job.events.append(step)
                    if not job.flows:
                        return True
            except StopIteration as end:
                job.outcome = end.value
            except BaseException as error:
                job.error = error
            self._end(job)
        return True

    @contextmanager
    def _having(self, weights: Weights | None) -> Iterator[bool]:
        """The weights to oneself for one operation without gradients; or False."""
        lock = None if weights is None else weights.lock
        if lock is not None and not lock.acquire(timeout=self._patience):
            self._patience = 0.0  # the others of this round do not wait again
            yield False
            return
        try:
            with torch.no_grad(), nullcontext() if weights is None else weights.one_operation():
                yield True
        finally:
            if lock is not None:
                lock.release()

    def _end(self, job: _Job[Any, Any]) -> None:
        job.ask, job.over = None, True
        try:
            job.steps.close()
        except BaseException as error:  # a job that cannot even be closed is over all the same
            job.error = job.error or error

    def _tell_all(self) -> None:
        """Post the round's events, and the end of those that are over; each loop wakes once."""
        calls: list[tuple[Post, Callable[[], object]]] = []
        for job in self._jobs:
            if job.events:
                events, job.events = job.events, []
                job.sent += len(events)
                calls.append((job.post, partial(self._tell, job, events)))
            if job.over:
                calls.append((job.post, job.done.set))
        left = [job for job in self._jobs if not job.over]
        self._jobs = deque(left)
        closed = {id(post) for post in post_all(calls)}
        for job in left:
            if id(job.post) in closed:  # nobody may wait for the job
                job.stop.set()

    def _tell(self, job: _Job[Any, Any], events: list[Any]) -> None:
        """On the event loop: tell of events, then ask for room for more."""
        try:
            for event in events:
                if job.stop.is_set():  # cancelled meanwhile: nobody follows any more
                    return
                job.emit(event)
            job.when_room(partial(self._room, job, len(events)))
        except Exception as error:
            job.error = error
            self._stop(job)

    def _room(self, job: _Job[Any, Any], events: int) -> None:
        """On the event loop: so many events were taken."""
        job.told += events
        self._wake.set()


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
