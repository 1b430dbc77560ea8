"""The engine in this process: turns on a model, computed by its device's worker."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

import anyio
import anyio.to_thread

from unspoken.agents.engines.assembly import Past
from unspoken.agents.engines.base import (
    KEEP,
    EngineFacts,
    Footprint,
    Form,
    Keep,
    LeaseRequest,
    StateRef,
    States,
    TurnEvent,
    TurnOutcome,
    TurnRequest,
)
from unspoken.agents.engines.needs import Needs
from unspoken.agents.engines.teams import ending_team
from unspoken.agents.engines.turn import Computed, Steps, run_turn
from unspoken.agents.engines.worker import WhenRoom, Worker, at_once
from unspoken.agents.models.base import TurnModel
from unspoken.channels.errors import StateError
from unspoken.channels.kv.compressed import CompressedState, compress, compressed_bytes_per_token
from unspoken.channels.kv.geometry import CacheGeometry
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message
from unspoken.channels.model import layer_devices
from unspoken.channels.packets.files import Readable
from unspoken.channels.packets.packet import packet_chunks, read_packet


class LocalEngine:
    """An engine whose model is in this process; keeps `unspoken.agents.engines.base.Engine`.

    Args:
        model: The model.
        states: Where its states are kept; engines that share it take each other's tickets.
        worker: Its device's worker.

    Attributes:
        when_room: Asked after every event of a turn; the turn waits for it.
    """

    def __init__(self, model: TurnModel, states: States, worker: Worker) -> None:
        self.model, self.states, self.worker = model, states, worker
        self.when_room: WhenRoom = at_once
        self._needs = Needs(model, states)

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
            batches=model.refuses_batches is None,
        )

    def footprint(self, request: TurnRequest) -> Footprint:
        """Bytes that a turn takes: rows of its own, and the states that it reads."""
        return self._needs.footprint(request)

    async def turn(
        self, request: TurnRequest, on_event: Callable[[TurnEvent], None]
    ) -> TurnOutcome:
        """Compute a turn on the device's thread, once there is memory for it."""
        wanted = request.keep_state
        if self.states.retains:
            request = replace(request, keep_state=True)
        async with self.states.lease(self._needs.lease(request)) as lease:
            steps = self._steps(_without(request, lease.lost), lease.found)
            weights, room = self.model.weights, self.when_room
            computed = await self.worker.run(steps, on_event, weights, room, flows=True)
            with lease.handing_over():
                kept = self._kept(request, computed, wanted=wanted)
        return TurnOutcome(
            ids=computed.ids,
            state=kept,
            usage=computed.usage,
            finish=computed.finish,
            likelihoods=computed.likelihoods,
        )

    def _kept(self, request: TurnRequest, computed: Computed, *, wanted: bool) -> StateRef | None:
        """The ticket of a finished turn's state; none where it is kept for later turns alone."""
        if computed.state is None:
            return None
        ref = self.states.put(computed.state, computed.ids, request.owner)
        if wanted:
            return ref
        self.states.release(ref)
        return None

    def _steps(self, request: TurnRequest, found: tuple[tuple[int, ...], KVState] | None) -> Steps:
        past = None if found is None else Past(*found, own=False)
        if request.history is not None and past is None:
            state = self.states.get(request.history.state)
            whole = state.decompress() if isinstance(state, CompressedState) else state
            past = Past(request.history.ids, whole)
        model, request = self.computing(request)
        return (yield from run_turn(model, request, past, self.states.get))

    def computing(self, request: TurnRequest) -> tuple[TurnModel, TurnRequest]:
        """What computes a turn, and what of it is left to do."""
        return self.model, request

    async def keep(self, state: StateRef, ids: tuple[int, ...], how: Keep = KEEP) -> StateRef:
        """One more ticket for a state or its beginning; copies are made on the device's thread."""
        windowed = any(layer.window for layer in self.model.geometry.layers)
        form: Form = (len(ids), how.codec, how.trimmed and windowed)
        known = self.states.derived(state, form, how.holder)
        if known is not None:
            return known
        source = self.states.about(state)
        copied = not isinstance(source, KVState) or form[1:] != ("raw", False)
        per_token = compressed_bytes_per_token(how.codec, self.model.geometry, self.model.dtype)
        request = LeaseRequest(
            device=self.model.device,
            refs=(state,),
            nbytes=lambda found: len(ids) * per_token if copied else 0,
            owner=how.holder,
            must_fit=False,
        )
        async with self.states.lease(request) as lease:
            whole = self.states.get(state)
            if isinstance(whole, KVState) and not copied:
                return self.states.put(whole.slice(0, len(ids)), ids, how.holder)
            made = await self.worker.run(_made(whole, self.model.geometry, form), _ignore)
            with lease.handing_over():
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
        self, source: bytes | Readable | Message, key: bytes | None = None
    ) -> tuple[Message, StateRef]:
        """Take a state in; the layers of a packet go to the device as they come."""

        def taken() -> Message:
            if isinstance(source, Message):
                return self._moved(source)
            return read_packet(source, self.model, key=key)

        message = await anyio.to_thread.run_sync(ending_team(taken), abandon_on_cancel=False)
        ref = self.states.put(message.require_state(), message.context, message.sharer)
        return replace(message, state=None), ref

    def _moved(self, message: Message) -> Message:
        """A message whose state is this model's, where it computes."""
        state = message.require_state()
        for identity in (message.identity, state.identity):
            self.model.identity.require(identity, f"the message of {message.sharer!r}")
        state.check(self.model.geometry, self.model.dtype)
        return replace(message, state=state.to(layer_devices(self.model)))


def _without(request: TurnRequest, lost: frozenset[StateRef]) -> TurnRequest:
    """A turn less the states that are lost: their messages are without one, and fall back."""
    if not lost:
        return request
    inbound = tuple(
        replace(one, state=None) if one.state in lost else one for one in request.inbound
    )
    history = request.history
    return replace(
        request,
        inbound=inbound,
        history=None if history is not None and history.state in lost else history,
    )


def _made(
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
