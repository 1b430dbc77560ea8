"""Messages between models of two tokenizers, carried over a bridge."""

from dataclasses import replace

from turns import Taken, Turn, inbound, writes
from turns import take as taken

from unspoken.agents import LocalModel
from unspoken.agents.prompts.context import ChatTurn, Context, Quote
from unspoken.agents.runtime.outbox import publish
from unspoken.channels import Arrival, CarryReport, Channel, Message

__all__ = ["WORDS", "arrival_of", "context_of", "message_of", "report", "take"]

WORDS = "the reader was in the document with the key 漢 🙂 e\u0301 of it, and who? " * 3


def message_of(model: LocalModel, words: str, *, before: str = "", name: str = "reader") -> Message:
    """What a mere reader of these words publishes, with its state."""
    said = [ChatTurn("user", (one,)) for one in (before, words) if one]
    context = model.context_builder.compose(said)
    state = model.prefill(model.tensor(context.ids)).state
    at = len(context.segments) - 1
    one = publish(name, "prompt", context, at, model.identity, model.text)
    return replace(one, state=state.slice(0, len(one.context)))


def context_of(model: LocalModel, *pieces: str | Message) -> Context:
    """A context of words and messages, each a turn."""
    return model.context_builder.compose(
        [
            ChatTurn("user", (one if isinstance(one, str) else Quote(one, one.segments[0]),))
            for one in pieces
        ]
    )


def arrival_of(context: Context, message: Message) -> Arrival:
    return Arrival(message, context.spans(message), context.ids, context.texts(message))


def take(
    model: LocalModel, context: Context, *carried: tuple[Message, Channel], fallback: bool = False
) -> Taken:
    """A turn of a context over some of its messages, each by its channel."""
    messages = tuple(
        inbound(number, channel, arrival_of(context, message), fallback, message.sharer)
        for number, (message, channel) in enumerate(carried)
    )
    return taken(model, Turn(context, messages, generate=writes(8), keep_state=True))[1]


def report(outcome: Taken, number: int = 0) -> CarryReport:
    return outcome.carries[number].report
