"""An engine whose turns are kept: computed once, then had from the store."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from blake3 import blake3

from unspoken.agents.delegates.engine import DelegateEngine
from unspoken.agents.engines.base import (
    KEEP,
    Carried,
    Engine,
    EngineFacts,
    Footprint,
    Keep,
    Sampled,
    Sampling,
    StateRef,
    TurnEvent,
    TurnOutcome,
    TurnRequest,
    Usage,
)
from unspoken.agents.runs.journal import Journal
from unspoken.agents.runs.origin import told_of_channel
from unspoken.agents.runs.owed import Owed, OwedStates, resolved, tickets
from unspoken.agents.runs.records import TurnRecord
from unspoken.channels.base import CarryReport, Fallback
from unspoken.channels.message import Message
from unspoken.channels.packets.files import Readable

_UNKNOWN = Usage(
    prompt_tokens=0,
    prefilled_tokens=0,
    reused_tokens=0,
    recomputed_tokens=0,
    projected_tokens=0,
    generated_tokens=0,
    layer_tokens_computed=0,
    ttft_s=None,
    seconds=0.0,
)


class _KnownReply:
    """Of a turn whose last ids are known, whatever is sampled."""

    def __init__(self, ids: tuple[int, ...]) -> None:
        self._ids = ids

    def push(self, token: int) -> bool:
        """Nothing ends the turn but its length."""
        return False

    def close(self) -> tuple[int, ...]:
        """The ids."""
        return self._ids


class KeptEngine:
    """An engine of a run that is kept.

    Args:
        engine: What computes.
        journal: Where turns are kept.
        owed: The run's states that are not computed yet.

    Attributes:
        inner: What computes.
    """

    def __init__(self, engine: Engine, journal: Journal, owed: OwedStates) -> None:
        self.inner, self._journal, self._owed = engine, journal, owed

    @property
    def facts(self) -> EngineFacts:
        """What it computes with."""
        return self.inner.facts

    def footprint(self, request: TurnRequest) -> Footprint:
        """Bytes that a turn takes, before anything runs."""
        return self.inner.footprint(request)

    async def turn(
        self, request: TurnRequest, on_event: Callable[[TurnEvent], None]
    ) -> TurnOutcome:
        """Compute a turn and keep it, or have it as it was kept."""
        digest = digest_of(request, self.facts)
        kept = self._journal.take(request.owner, request.turn, request.item, digest)
        keeps_itself = isinstance(self.inner, DelegateEngine) and self.inner.keeps_itself
        if kept is not None and keeps_itself:  # its own turns are had from the store, and told of
            return await self.inner.turn(request, on_event)
        if kept is not None:
            for edge, report, seconds in kept.carried:
                on_event(Carried(edge, _report(report), seconds))
            outcome = await self.given(request, kept.tokens, on_event, kept.state)
            return replace(
                outcome,
                usage=_usage(kept.usage),
                finish=kept.finish,
                likelihoods=kept.likelihoods,
                restored=True,
            )
        tokens: list[int] = []
        carried: list[Carried] = []

        def heard(event: TurnEvent) -> None:
            match event:
                case Sampled(token):
                    tokens.append(token)
                case Carried():
                    carried.append(event)
            on_event(event)

        outcome = await self.inner.turn(await resolved(request, self._owed.of(request)), heard)
        record = TurnRecord(
            agent=request.owner,
            turn=request.turn,
            item=-1 if request.item is None else request.item,
            digest=digest,
            tokens=tuple(tokens),
            finish=outcome.finish,
            usage=asdict(outcome.usage),
            likelihoods=outcome.likelihoods,
            carried=tuple((one.edge, asdict(one.report), one.seconds) for one in carried),
            state=await self._journal.keep_state(self.inner, request.owner, outcome),
        )
        await self._journal.add(record)
        await self._journal.keep_state_again(self.inner, request.owner, outcome, record.state)
        return outcome

    async def given(
        self,
        request: TurnRequest,
        tokens: tuple[int, ...],
        on_event: Callable[[TurnEvent], None] = lambda event: None,
        state: str = "",
    ) -> TurnOutcome:
        """A turn whose sampled ids are known.

        Args:
            request: The turn.
            tokens: The ids.
            on_event: Told of each.
            state: Digest of the packet with its state, where one is kept.
        """
        ids, reply = request.ids, request.reply
        for token in tokens:
            if reply is not None:
                reply.push(token)
            on_event(Sampled(token))
        if request.sampling is not None:
            ids = (*ids, *(tokens if reply is None else reply.close()))
        ref = await self._owe(request, ids, state) if request.keep_state else None
        return TurnOutcome(ids=ids, state=ref, usage=_UNKNOWN, finish="given")

    async def _owe(self, request: TurnRequest, ids: tuple[int, ...], state: str) -> StateRef:
        """A ticket for the state of a turn with these ids."""
        whole = replace(request, ids=ids, sampling=None, grammar=None, choices=(), reply=None)
        refs = self._owed.of(request)
        if len(refs) < len(tickets(request)):  # the others may be gone later
            return await self._computed(await resolved(whole, refs))

        async def make() -> StateRef:
            ref = await self._journal.stored_state(self.inner, state, ids)
            if ref is not None:
                return ref
            return await self._computed(await resolved(whole, refs))

        return self._owed.add(Owed(self.inner, make, tuple(refs.values())))

    async def _computed(self, request: TurnRequest) -> StateRef:
        most = self.facts.max_positions - 1
        if len(request.ids) > most:  # the turn filled its context: the end follows as it did then
            ids, rest = request.ids[:most], request.ids[most:]
            request = replace(
                request, ids=ids, sampling=Sampling(max_tokens=1), reply=_KnownReply(rest)
            )
        outcome = await self.inner.turn(request, lambda event: None)
        assert outcome.state is not None  # the request keeps it
        return outcome.state

    async def keep(self, state: StateRef, ids: tuple[int, ...], how: Keep = KEEP) -> StateRef:
        """One more ticket; of a state that is owed, one that is owed."""
        owed = self._owed.get(state)
        if owed is None:
            return await self.inner.keep(state, ids, how)

        async def make() -> StateRef:
            return await self.inner.keep(await owed.ref(), ids, how)

        return self._owed.add(Owed(self.inner, make, (owed,)))

    async def settled(self, state: StateRef) -> StateRef:
        """The ticket of what computes, for a state that may be owed."""
        owed = self._owed.get(state)
        return state if owed is None else await owed.ref()

    def release(self, state: StateRef) -> None:
        """Give a ticket back."""
        if not self._owed.release(state):
            self.inner.release(state)

    def export(
        self, state: StateRef, message: Message, key: bytes | None = None
    ) -> Iterator[bytes | memoryview]:
        """A message with its state as chunks of a packet."""
        return self.inner.export(state, message, key)

    async def admit(
        self, source: bytes | Readable | Message, key: bytes | None = None
    ) -> tuple[Message, StateRef]:
        """Take a state in, of a packet or a message that has one."""
        return await self.inner.admit(source, key)


def kept_engines(engines: Mapping[str, Engine], journal: Journal) -> dict[str, Engine]:
    """Engines whose turns are kept, by agent; those of one model share what they keep."""
    owed = OwedStates()
    kept = {id(engine): KeptEngine(engine, journal, owed) for engine in engines.values()}
    return {name: kept[id(engine)] for name, engine in engines.items()}


def computing(engine: Engine) -> Engine:
    """The engine that computes, behind one whose turns are kept."""
    return engine.inner if isinstance(engine, KeptEngine) else engine


async def settled(engine: Engine, state: StateRef | None) -> StateRef | None:
    """A ticket of the engine that computes; an owed state is computed now."""
    if state is None or not isinstance(engine, KeptEngine):
        return state
    return await engine.settled(state)


def digest_of(request: TurnRequest, facts: EngineFacts) -> str:
    """Of what a turn reads and how it samples: two turns of one digest write the same.

    That holds where sampling is greedy or has a seed.
    """
    sampling = None if request.sampling is None else _settings(request.sampling)
    edges = [(one.edge, one.fallback, told_of_channel(one.channel)) for one in request.inbound]
    shape = [getattr(request.grammar, name, None) for name in ("text", "after")]
    stop = getattr(request.reply, "stop", ())
    model = asdict(facts.identity), str(facts.dtype)
    told = repr((request.ids, sampling, request.choices, shape, stop, edges, model))
    return blake3(told.encode()).hexdigest(length=16)


def _settings(sampling: Sampling) -> list[tuple[str, Any]]:
    values = ((one.name, getattr(sampling, one.name)) for one in fields(sampling))
    return [(name, sorted(v) if isinstance(v, frozenset) else v) for name, v in values]


def _report(data: Mapping[str, Any]) -> CarryReport:
    fallback = data.get("fallback")
    known = _known(CarryReport, {**data, "fallback": fallback and Fallback(**fallback)})
    return CarryReport(**known)


def _usage(data: Mapping[str, Any]) -> Usage:
    return replace(_UNKNOWN, **_known(Usage, data))


def _known(kind: type[CarryReport] | type[Usage], data: Mapping[str, Any]) -> dict[str, Any]:
    """Without what another release has written besides."""
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in data.items() if name in names}
