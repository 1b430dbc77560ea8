"""Messages with their state, and what a receiver makes of them."""

from dataclasses import replace

from turns import Taken, Turn, inbound, take, writes

from unspoken.agents import LocalModel
from unspoken.agents.engines.assembly import Assembly, assemble
from unspoken.agents.prompts.context import ChatTurn, Context, Quote
from unspoken.agents.runtime.outbox import publish
from unspoken.channels import Arrival, CarryReport, Channel, Message, SameModelCacheChannel

WORDS = "the reader was in the document with the key 漢 🙂 e\u0301 of it, and who? " * 3


def message_of(
    model: LocalModel,
    words: str,
    *,
    system: str | None = None,
    before: str = "",
    name: str = "reader",
) -> Message:
    """What a mere reader of these words publishes, with its state."""
    said = [ChatTurn("user", (each,)) for each in (before, words) if each]
    context = model.context_builder.compose(said, system=system)
    state = model.prefill(model.tensor(context.ids)).state
    at = len(context.segments) - 1
    message = publish(name, "prompt", context, at, model.identity, model.text)
    return replace(message, state=state.slice(0, len(message.context)))


def context_of(model: LocalModel, *pieces: str | Message, system: str | None = None) -> Context:
    """A context of words and messages, each a turn."""
    turns = [
        ChatTurn("user", (each if isinstance(each, str) else Quote(each, each.segments[0]),))
        for each in pieces
    ]
    return model.context_builder.compose(turns, system=system)


def arrival_of(context: Context, message: Message) -> Arrival:
    return Arrival(
        message=message,
        spans=context.spans(message),
        context=context.ids,
        texts=context.texts(message),
    )


def receive(
    model: LocalModel, *messages: Message, system: str | None = None, channel: Channel | None = None
) -> tuple[tuple[int, ...], Assembly]:
    """A receiver's context ids over messages, and the states found for it."""
    context = context_of(model, *messages, " what is it?", system=system)
    carried = [
        inbound(number, channel or SameModelCacheChannel(), arrival_of(context, each), False)
        for number, each in enumerate(messages)
    ]
    return context.ids, assemble(model, context.ids, carried)


def take_over(
    model: LocalModel, context: Context, *carried: tuple[Message, Channel], fallback: bool = False
) -> Taken:
    """A turn of a context over some of its messages, each by its channel."""
    messages = tuple(
        inbound(number, channel, arrival_of(context, message), fallback, message.sharer)
        for number, (message, channel) in enumerate(carried)
    )
    return take(model, Turn(context, messages, generate=writes(8), keep_state=True))[1]


def report(outcome: Taken, number: int = 0) -> CarryReport:
    return outcome.carries[number].report
