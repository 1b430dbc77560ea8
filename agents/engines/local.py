"""The engine in this process: a thread per device that runs turns one operation at a time.

A turn is a generator (see `unspoken.agents.engines.turn`). The device's thread runs one step of it,
gives its event to the event loop, and queues the next step behind those of the other turns. So
turns that are ready together advance in turn, and a cancel never waits for more than one operation.
This queue is where ready steps of one model will be batched.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import torch

from unspoken.agents.engines.assembly import Past
from unspoken.agents.engines.base import (
    KEEP,
    EngineFacts,
    Footprint,
    Form,
    Keep,
    StateRef,
    States,
    TurnEvent,
    TurnOutcome,
    TurnRequest,
)
from unspoken.agents.engines.turn import CLOSING, MOST_SPARE, Computed, run_turn
from unspoken.agents.models.base import TurnModel
from unspoken.agents.models.weights import Weights
from unspoken.channels.errors import StateError
from unspoken.channels.kv.compressed import CompressedState, compress
from unspoken.channels.kv.geometry import CacheGeometry
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message
from unspoken.channels.packets.files import Readable
from unspoken.channels.packets.packet import packet_chunks, read_packet

__all__ = ["LocalEngine", "Worker", "Workers"]

Event = TypeVar("Event")
Outcome = TypeVar("Outcome")

BUSY = 0.02
"""Seconds that a device's thread waits for weights that somebody holds before it tries others."""


@dataclass(eq=False)
class _Job(Generic[Event, Outcome]):
    steps: Generator[Event, None, Outcome]
    emit: Callable[[Event], None]
    weights: Weights | None
    loop: anyio.lowlevel.EventLoopToken
    done: anyio.Event
    stop: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome | None = None
    error: BaseException | None = None


class Worker:
    """Runs jobs on one device. A job is a generator: each step is one operation.

    Args:
        name: Name of its thread.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        # Both are read and written on that thread alone.
        self._active = self._blocked = 0

    async def run(
        self,
        steps: Generator[Event, None, Outcome],
        emit: Callable[[Event], None],
        weights: Weights | None = None,
    ) -> Outcome:
        """Run a job to its end; a cancel is seen between two operations.

        Args:
            steps: The job.
            emit: Called on the event loop with every event.
            weights: What it computes on; each step has them to itself.

        Raises:
            Exception: Whatever the job raised.
        """
        job = _Job(steps, emit, weights, anyio.lowlevel.current_token(), anyio.Event())
        self._thread.submit(self._begin, job)
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

    def _begin(self, job: _Job[Any, Any]) -> None:
        self._active += 1
        self._step(job)

    def _step(self, job: _Job[Any, Any]) -> None:
        """Run one operation of a job, and queue the next behind those of the other jobs."""
        try:
            if not job.stop.is_set():
                advanced, event = self._advance(job)
                if advanced:
                    self._on_loop(job, job.emit, event)
                self._thread.submit(self._step, job)
                return
        except StopIteration as end:
            job.outcome = end.value
        except BaseException as error:
            job.error = error
        try:
            job.steps.close()
        except BaseException as error:  # a job that cannot even be closed is over all the same
            job.error = job.error or error
        self._active -= 1
        self._on_loop(job, job.done.set)

    def _advance(self, job: _Job[Any, Any]) -> tuple[bool, Any]:
        """One operation and its event; or none, where somebody holds the weights for long.

        Other jobs go on meanwhile: only where all of them are blocked does the thread wait.
        """
        lock = threading.RLock() if job.weights is None else job.weights.lock
        if not lock.acquire(timeout=BUSY if self._blocked >= self._active - 1 else 0):
            self._blocked += 1
            return False, None
        self._blocked = 0
        try:
            with torch.no_grad():
                return True, next(job.steps)
        finally:
            lock.release()

    def _on_loop(self, job: _Job[Any, Any], call: Callable[..., None], *args: Any) -> None:
        try:
            anyio.from_thread.run_sync(call, *args, token=job.loop)
        except anyio.RunFinishedError:
            job.stop.set()


class Workers:
    """One worker per device, for all engines that are to share the devices' time."""

    def __init__(self) -> None:
        self._workers: dict[torch.device, Worker] = {}

    def of(self, device: torch.device) -> Worker:
        """The worker of a device."""
        if device not in self._workers:
            self._workers[device] = Worker(f"unspoken-{device}")
        return self._workers[device]


class LocalEngine:
    """An engine whose model is in this process; keeps `unspoken.agents.engines.base.Engine`.

    Args:
        model: The model.
        states: Where its states are kept; engines that share it take each other's tickets.
        worker: Its device's worker.
    """

    def __init__(self, model: TurnModel, states: States, worker: Worker) -> None:
        self.model, self.states, self.worker = model, states, worker

    @property
    def facts(self) -> EngineFacts:
        """What it computes with."""
        model = self.model
        return EngineFacts(
            name=model.ref,
            identity=model.identity,
            geometry=model.geometry,
            dtype=model.dtype,
            device=model.device,
            max_positions=model.max_positions,
        )

    def footprint(self, request: TurnRequest) -> Footprint:
        """Bytes that a turn takes: its buffer, and the states that it reads."""
        new = request.sampling.max_tokens if request.sampling else 0
        rows = len(request.ids) + min(new, MOST_SPARE) + CLOSING
        largest, peak = rows, rows
        if new > MOST_SPARE:  # the buffer grows by half, and the old one stands beside the new
            most = min(len(request.ids) + new, self.model.max_positions) + CLOSING
            largest = most + most // 2
            peak = largest + most
        row = self.model.geometry.bytes_per_token(self.model.dtype.itemsize)
        refs = {inbound.state for inbound in request.inbound if inbound.state is not None}
        if request.history is not None:
            refs.add(request.history.state)
        # A channel may move, unpack or map what it takes over, beside the state itself.
        taken = sum(self._rows(ref) * row + self.states.get(ref).nbytes for ref in refs)
        return Footprint(peak=peak * row + taken, kept=largest * row if request.keep_state else 0)

    def _rows(self, ref: StateRef) -> int:
        state = self.states.get(ref)
        return state.stop - state.start

    async def turn(
        self, request: TurnRequest, on_event: Callable[[TurnEvent], None]
    ) -> TurnOutcome:
        """Compute a turn on the device's thread."""
        steps = self._steps(request)
        computed = await self.worker.run(steps, on_event, self.model.weights)
        kept = None
        if computed.state is not None:
            kept = self.states.put(computed.state, computed.ids, request.owner)
        return TurnOutcome(
            ids=computed.ids, state=kept, usage=computed.usage, finish=computed.finish
        )

    def _steps(self, request: TurnRequest) -> Generator[TurnEvent, None, Computed]:
        past = None
        if request.history is not None:
            state = self.states.get(request.history.state)
            whole = state.decompress() if isinstance(state, CompressedState) else state
            past = Past(request.history.ids, whole)
        model = self.model_for(request)
        return (yield from run_turn(model, request, past, self.states.get))

    def model_for(self, request: TurnRequest) -> TurnModel:
        """What computes this turn."""
        return self.model

    async def keep(self, state: StateRef, ids: tuple[int, ...], how: Keep = KEEP) -> StateRef:
        """One more ticket for a state or its beginning; copies are made on the device's thread."""
        windowed = any(layer.window for layer in self.model.geometry.layers)
        form: Form = (len(ids), how.codec, how.trimmed and windowed)
        known = self.states.derived(state, form, how.holder)
        if known is not None:
            return known
        whole = self.states.get(state)
        if isinstance(whole, KVState) and form[1:] == ("raw", False):
            return self.states.put(whole.slice(0, len(ids)), ids, how.holder)
        made = await self.worker.run(_kept(whole, self.model.geometry, form), _ignore)
        return self.states.put(made, ids, how.holder, (state, form))

    def release(self, state: StateRef) -> None:
        """Give a ticket back."""
        self.states.release(state)

    def export(
        self, state: StateRef, message: Message, key: bytes | None = None
    ) -> Iterator[bytes | memoryview]:
        """A message with its state as chunks of a packet."""
        whole = self.states.get(state)
        if isinstance(whole, CompressedState):
            raise StateError(
                f"the state is kept as {whole.codec}",
                expected="a state as it was computed",
                fix="use codec: raw on the edge, and the packet's own codec",
            )
        whole.identity.require(message.identity, f"the message of {message.sharer!r}")
        begin = whole.slice(0, len(message.context))
        return packet_chunks(replace(message, state=begin), key=key)

    async def admit(
        self, packet: bytes | Readable, key: bytes | None = None
    ) -> tuple[Message, StateRef]:
        """Take a packet's state in; its layers go to the device as they come."""
        message = await anyio.to_thread.run_sync(
            lambda: read_packet(packet, self.model, key=key), abandon_on_cancel=False
        )
        assert message.state is not None  # a packet has one
        ref = self.states.put(message.state, message.context, message.sharer)
        return replace(message, state=None), ref


def _kept(
    state: KVState | CompressedState, geometry: CacheGeometry, form: Form
) -> Generator[None, None, KVState | CompressedState]:
    yield  # the worker turns gradients off around every step
    tokens, codec, trimmed = form
    whole = state.decompress() if isinstance(state, CompressedState) else state
    begin = whole.slice(0, tokens)
    begin = begin.trim(geometry) if trimmed else begin
    return begin if codec == "raw" else compress(begin, codec)


def _ignore(event: object) -> None:
    """An event that nobody waits for."""
