"""An engine under test, and turns on it: in token ids, tickets and sampling settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from unspoken.agents.engines.base import (
    Engine,
    Inbound,
    Sampling,
    StateRef,
    TurnEvent,
    TurnOutcome,
    TurnRequest,
)
from unspoken.channels.base import Arrival, Span
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.message import Message, Segment
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

PROMPT = tuple(range(20, 60))
MORE = (70, 71, 72, 73, 74)


@dataclass
class Subject:
    """An engine under test.

    Attributes:
        engine: The engine.
        held: Number of states that it keeps.
        bytes_held: Bytes of memory that they keep alive.
        greedy: The ids that its model writes greedily after a context, by other means than an
            engine: what transformers' ``generate`` gives.
    """

    engine: Engine
    held: Callable[[], int]
    bytes_held: Callable[[], int]
    greedy: Callable[[Sequence[int], int], tuple[int, ...]]


@dataclass
class Script:
    """A reply that ends the turn after some ids, and closes it with others."""

    after: int = 1000
    closing: tuple[int, ...] = ()
    kept: int | None = None
    ids: list[int] = field(default_factory=list)

    def push(self, token: int) -> bool:
        self.ids.append(token)
        return len(self.ids) >= self.after

    def close(self) -> tuple[int, ...]:
        return (*self.ids[: self.kept], *self.closing)


def writes(tokens: int, **settings: object) -> Sampling:
    return Sampling(max_tokens=tokens, **settings)  # type: ignore[arg-type]


async def told(engine: Engine, request: TurnRequest) -> tuple[list[TurnEvent], TurnOutcome]:
    events: list[TurnEvent] = []
    return events, await engine.turn(request, events.append)


async def take(engine: Engine, request: TurnRequest) -> TurnOutcome:
    return (await told(engine, request))[1]


def message_of(ids: tuple[int, ...], identity: ModelIdentity) -> Message:
    """All of a context as one message."""
    segment = Segment(role="user", ids=ids, content=(0, len(ids)), text="words", position=0)
    return Message(sharer="sharer", segments=(segment,), whole=True, context=ids, identity=identity)


def inbound(
    message: Message,
    state: StateRef | None,
    context: tuple[int, ...],
    at: int = 0,
    channel: SameModelCacheChannel | TextChannel | None = None,
    fallback: bool = False,
) -> Inbound:
    """A message whose tokens stand at position `at` of a context."""
    span = Span(at, 0, len(message.context))
    return Inbound(
        edge=7,
        sharer="sharer",
        receiver="receiver",
        channel=channel or SameModelCacheChannel(),
        message=message,
        state=state,
        arrival=Arrival(message=message, spans=(span,), context=context),
        fallback=fallback,
    )
