"""The contract of an engine: what computes turns, in token ids, states and sampling settings.

An engine knows nothing of words. Templates, tokenizers and stop strings stay outside of it: a turn
hands it the ids of a context and the messages whose state may serve it, and a `Reply` that looks at
each sampled id. `LocalEngine` computes in this process; an engine in another process, or over a
server, keeps the same contract (tests/support/engine_contract.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from unspoken.agents.engines.constraints import Grammar
from unspoken.agents.engines.outcome import (
    Carried,
    Prefilling,
    Sampled,
    StateRef,
    TurnEvent,
    TurnOutcome,
    Usage,
)
from unspoken.agents.engines.states import (
    KEEP,
    Form,
    Keep,
    Lease,
    LeaseRequest,
    PrefixQuery,
    States,
)
from unspoken.channels.base import Arrival, Channel
from unspoken.channels.kv.geometry import CacheGeometry, ModelIdentity
from unspoken.channels.message import Message
from unspoken.channels.packets.files import Readable

__all__ = [
    "KEEP",
    "Carried",
    "Engine",
    "EngineFacts",
    "Footprint",
    "Form",
    "Grammar",
    "HasEngine",
    "History",
    "Inbound",
    "Keep",
    "Lease",
    "LeaseRequest",
    "Prefilling",
    "PrefixQuery",
    "Reply",
    "Sampled",
    "Sampling",
    "StateRef",
    "States",
    "TurnEvent",
    "TurnOutcome",
    "TurnRequest",
    "Usage",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What an engine computes with, and what it can do.

    Attributes:
        name: What to call its model.
        identity: Whose states it makes and takes.
        geometry: The shape of its cache.
        dtype: Element type of its cache.
        device: Where it computes.
        max_positions: Longest context, in tokens.
        captures: Whether it can keep hidden states for readers with other weights (the E-cache).
        carries: Whether channels may compute in its model; without, messages come as text or as an
            exact prefix.
        batches: Whether turns that are ready together are computed in one forward.
    """

    name: str
    identity: ModelIdentity
    geometry: CacheGeometry
    dtype: torch.dtype
    device: torch.device
    max_positions: int
    captures: bool = True
    carries: bool = True
    batches: bool = False


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of state that a turn takes, known before anything runs.

    Attributes:
        peak: At most at a time, what it takes over included.
        kept: Afterwards, where its state is wanted.
        private: Of the peak, what the turn makes itself. The rest are states that are kept already.
    """

    peak: int
    kept: int
    private: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen; each setting is transformers' own of that name.

    Attributes:
        max_tokens: Most tokens to sample.
        min_tokens: Least tokens before one of the stop ids.
        stop_ids: Ids that end the turn.
        temperature: 0 takes the likeliest token, after the penalties.
        top_p, top_k, top_h, min_p, typical_p, epsilon_cutoff, eta_cutoff: Sample from these alone;
            None for all.
        repetition_penalty: Divides the logits of ids in the context; None for 1.
        no_repeat_ngram_size: No run of this many ids twice; 0 for any.
        bad_ids: Runs of ids that are never completed.
        suppressed: Ids that are never sampled.
        seed: Of the turn's own generator; None for another one each time.
    """

    max_tokens: int
    min_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    top_h: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int = 0
    bad_ids: tuple[tuple[int, ...], ...] = ()
    suppressed: tuple[int, ...] = ()
    seed: int | None = None


class Reply(Protocol):
    """What the turn's owner makes of the sampled ids; called where the engine computes."""

    def push(self, token: int) -> bool:
        """Take a sampled id that ends no turn by itself; whether its words end the turn."""

    def close(self) -> tuple[int, ...]:
        """The ids that follow the prompt in the finished context, the closing ones included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbound:
    """A message on its way into a turn.

    Attributes:
        edge: Number of the edge.
        sharer, receiver: Its ends.
        channel: What carries it.
        message: The message; its state is with the engine, under `state`.
        state: The engine's ticket for that state; None where the message brings none.
        role: Role of its turn in the receiver's template.
        fresh: Whether it is new to the receiver's context; if not, its words are there already.
        fallback: Whether a channel that fails gives way to text.
        arrival: The message in its place, once the context is composed.
        most_inexact: Most inexact hand-overs in a row that its state may have come through with
            this one; None for any number.
    """

    edge: int
    sharer: str
    receiver: str
    channel: Channel
    message: Message
    state: StateRef | None = None
    role: str = "user"
    fresh: bool = True
    fallback: bool = True
    arrival: Arrival | None = None
    most_inexact: int | None = None

    @property
    def name(self) -> str:
        """The edge, as ``sharer -> receiver``."""
        return f"{self.sharer} -> {self.receiver}"


@dataclass(frozen=True, slots=True)
class History:
    """An agent's earlier turns.

    Attributes:
        ids: Ids of its context.
        state: The engine's ticket for their state.
    """

    ids: tuple[int, ...]
    state: StateRef


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """What a turn is to do.

    Attributes:
        ids: All ids of the context, those that ask for the assistant's words included.
        inbound: Messages in their places whose state may serve it.
        history: This agent's earlier turns.
        sampling: How to write; None writes nothing.
        grammar: What the words may be; None for any.
        choices: Texts as tokens, one of which is written: at temperature 0 the likeliest. Only
            `Sampling.temperature` and its seed count. Empty for words of its own.
        reply: Looks at what is written; None lets it run to a stop id or to the limit.
        keep_state: Whether the state is wanted afterwards, by a reader or by a later turn.
        capture: Layers whose inputs the state is to keep, for readers with other weights.
        snapshots: Positions where recurrent layers leave a snapshot, for later turns whose contexts
            begin alike: the ends of turns mostly, and some of the tokens that are written, if as
            many are. Other models need none.
        owner: Who asks, to name the holder of the state.
        limit_s: Most seconds of work, where there is a limit. Waiting for the device or for other
            turns is no work.
        turn: Which turn of its owner it is, from 1.
        item: Number of the item of ``for_each``, from 0; None without.
    """

    ids: tuple[int, ...]
    inbound: tuple[Inbound, ...] = ()
    history: History | None = None
    sampling: Sampling | None = None
    grammar: Grammar | None = None
    choices: tuple[tuple[int, ...], ...] = ()
    reply: Reply | None = None
    keep_state: bool = False
    capture: tuple[int, ...] = ()
    snapshots: tuple[int, ...] = ()
    owner: str = ""
    limit_s: float | None = None
    turn: int = 1
    item: int | None = None


class Engine(Protocol):
    """What computes the turns of agents on one model."""

    @property
    def facts(self) -> EngineFacts:
        """What it computes with."""

    def footprint(self, request: TurnRequest) -> Footprint:
        """Bytes that a turn takes, before anything runs."""

    async def turn(
        self, request: TurnRequest, on_event: Callable[[TurnEvent], None]
    ) -> TurnOutcome:
        """Compute a turn; to cancel it is to cancel the await.

        Args:
            request: What to do.
            on_event: Called on the event loop with every event, in order.

        Raises:
            ContextLengthError: More tokens than the context holds.
            RunError: A message that cannot be carried, on an edge that does not fall back.
            RunTimeout: More work than `request.limit_s` allows.
        """

    async def keep(self, state: StateRef, ids: tuple[int, ...], how: Keep = KEEP) -> StateRef:
        """One more ticket for a state of `ids` and maybe more, or for its first `len(ids)` rows."""

    def release(self, state: StateRef) -> None:
        """Give a ticket back; the state goes with the last one."""

    def export(
        self, state: StateRef, message: Message, key: bytes | None = None
    ) -> Iterator[bytes | memoryview]:
        """A message with its state as chunks of a packet.

        Raises:
            IdentityMismatch: Another model wrote the message.
            StateError: The state is not one of all its tokens.
        """

    async def admit(
        self, source: bytes | Readable | Message, key: bytes | None = None
    ) -> tuple[Message, StateRef]:
        """Take a state in, of a packet or a message that has one.

        Args:
            source: The packet, or the message that was read of one.
            key: The packet's.

        Returns:
            The message without the state, and the ticket for that.

        Raises:
            PacketError, IdentityMismatch, GeometryMismatch: A state that cannot be taken.
            StateError: A message without one.
        """


@runtime_checkable
class HasEngine(Protocol):
    """A model whose turns something else than `LocalEngine` computes."""

    def make_engine(self, states: States) -> Engine:
        """Its engine for a run whose states are kept in `states`."""
