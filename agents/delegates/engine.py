"""The engine of an agent without a model: it asks for the words, and no state comes of it."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn, Protocol, runtime_checkable

import anyio

from unspoken.agents.engines.base import (
    KEEP,
    Carried,
    EngineFacts,
    Footprint,
    Keep,
    Reply,
    Sampled,
    StateRef,
    TurnEvent,
    TurnOutcome,
    TurnRequest,
    Usage,
)
from unspoken.channels.errors import RunTimeout, StateError
from unspoken.channels.message import Message
from unspoken.channels.packets.files import Readable
from unspoken.channels.text import TextChannel

if TYPE_CHECKING:
    from unspoken.agents.delegates.model import Delegate


@runtime_checkable
class AskingReply(Reply, Protocol):
    """A reply that knows the words which it answers."""

    @property
    def asked(self) -> str:
        """The words, without what a template writes around them."""


class DelegateEngine:
    """Has turns answered by what stands in a model's place.

    Args:
        model: Whose turns they are.

    Attributes:
        keeps_itself: Whether it knows what it did before a run was interrupted.
    """

    keeps_itself = False

    def __init__(self, model: "Delegate") -> None:
        self._model = model

    @property
    def facts(self) -> EngineFacts:
        """It computes nothing."""
        model = self._model
        return EngineFacts(
            name=model.kind,
            identity=model.identity,
            geometry=model.geometry,
            dtype=model.dtype,
            device=model.device,
            max_positions=model.max_positions,
            captures=False,
            carries=False,
        )

    def footprint(self, request: TurnRequest) -> Footprint:
        """No state."""
        return Footprint(peak=0, kept=0)

    async def answer(self, request: TurnRequest, words: str) -> str:
        """The words that answer a turn."""
        assert self._model.answer is not None  # a workflow has an engine of its own
        return await self._model.answer(words)

    async def turn(
        self, request: TurnRequest, on_event: Callable[[TurnEvent], None]
    ) -> TurnOutcome:
        """Have a turn answered, within its time.

        Raises:
            RunTimeout: It took longer.
            Exception: Whatever went wrong in a function.
        """
        began = anyio.current_time()
        for one in request.inbound:
            if one.arrival is not None:
                carry = TextChannel().carry(one.arrival, self._model)
                on_event(Carried(one.edge, carry.report, 0.0))
        reply = request.reply
        words = reply.asked if isinstance(reply, AskingReply) else ""
        with anyio.move_on_after(request.limit_s) as scope:
            text = await self.answer(request, words)
        if scope.cancelled_caught:
            raise RunTimeout(
                f"agent {request.owner!r} took longer than its timeout of {request.limit_s:g} s",
                agent=request.owner,
                expected="an answer within so many seconds",
                fix="raise the agent's timeout, or shorten its work",
            )
        ids = self._model.text.encode_words(text)
        for token in ids:
            if reply is not None:
                reply.push(token)
            on_event(Sampled(token))
        closed = ids if reply is None else reply.close()
        usage = Usage(
            prompt_tokens=0,
            prefilled_tokens=0,
            reused_tokens=0,
            recomputed_tokens=0,
            projected_tokens=0,
            generated_tokens=0,
            layer_tokens_computed=0,
            ttft_s=None,
            seconds=anyio.current_time() - began,
        )
        return TurnOutcome(ids=(*request.ids, *closed), state=None, usage=usage, finish="given")

    async def keep(self, state: StateRef, ids: tuple[int, ...], how: Keep = KEEP) -> StateRef:
        """There is no state to keep."""
        self._refuse()

    def release(self, state: StateRef) -> None:
        """There is no state to give back."""

    def export(
        self, state: StateRef, message: Message, key: bytes | None = None
    ) -> Iterator[bytes | memoryview]:
        """There is no state to export."""
        self._refuse()

    async def admit(
        self, source: bytes | Readable | Message, key: bytes | None = None
    ) -> tuple[Message, StateRef]:
        """It takes no state in."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise StateError(f"{self._model.kind} has no states", expected="a message in words")
