"""Messages with their state, and what a receiver finds of them."""

from turns import inbound

from unspoken.agents.engines.assembly import Assembly, assemble
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn, Context, Quote
from unspoken.channels.base import Arrival, Channel
from unspoken.channels.message import Message
from unspoken.channels.same_model import SameModelCacheChannel

__all__ = ["message_of", "receive"]


def message_of(model: LocalModel, text: str, system: str | None = None) -> Message:
    """A read document as a message, with its state."""
    context = model.context_builder.compose([ChatTurn("user", (text,))], system=system)
    state = model.prefill(model.tensor(context.ids)).state
    return Message("reader", (context.segments[-1],), False, context.ids, model.identity, state)


def receive(
    model: LocalModel, *messages: Message, system: str | None = None, channel: Channel | None = None
) -> tuple[tuple[int, ...], Assembly]:
    """A receiver's context ids over messages, and the states found for it."""
    turns = [ChatTurn("user", (Quote(one, one.segments[0]),)) for one in messages]
    context: Context = model.context_builder.compose(
        [*turns, ChatTurn("user", (" what is it?",))], system=system
    )
    deliveries = [
        inbound(
            number,
            channel or SameModelCacheChannel(),
            Arrival(one, context.spans(one), context.ids),
            fallback=False,
        )
        for number, one in enumerate(messages)
    ]
    return context.ids, assemble(model, context.ids, deliveries)
