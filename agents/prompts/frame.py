"""What stands around a message: in a context of its own, and in a receiver's."""

from unspoken.agents.prompts.context import ChatTurn, Context, ContextBuilder, Quote
from unspoken.channels.base import Arrival
from unspoken.channels.errors import ContextLengthError, InputError
from unspoken.channels.message import Message
from unspoken.channels.model import Frame


def frame_of(builder: ContextBuilder, name: str) -> Frame:
    """What stands around a message: ``bare``, or ``chat`` for a user turn of a template."""
    if name == "bare":
        return Frame(name, builder.text.encode(builder.text.bos), ())
    context = builder.compose([ChatTurn("user", ("x",))])
    turn = context.segments[-1]
    start, stop = turn.content
    return Frame(name, context.ids[: turn.position + start], turn.ids[stop:] + builder.ask())


def message_context(
    builder: ContextBuilder, text: str, system: str | None, *, longest: int, model: str
) -> Context:
    """A text as a user's turn in a context of its own.

    Args:
        builder: Composes it.
        text: The words.
        system: A system prompt before them; None leaves that to the chat template.
        longest: Most tokens that the model's context holds.
        model: What the model is called, in errors.

    Raises:
        InputError: No words, on a model whose template writes none itself.
        ContextLengthError: More than `longest` tokens.
    """
    context = builder.compose([ChatTurn("user", (text,))], system=system)
    if not context.ids:
        raise InputError(
            "a message of no token", expected="words to read", fix="give the message a text"
        )
    if len(context.ids) > longest:
        raise ContextLengthError(
            f"the message has {len(context.ids)} tokens",
            expected=f"at most the {longest} of {model}",
            fix="shorten it, or use a model with a longer context",
        )
    return context


def arrival_of(
    builder: ContextBuilder, message: Message, question: str, system: str | None
) -> Arrival:
    """A message in a receiver's context, as a workflow composes it: its turn, then the question's.

    The ids end where the receiver's answer begins.
    """
    quoted = [Quote(message, segment) for segment in message.segments]
    turns = [ChatTurn("user", tuple(quoted)), ChatTurn("user", (question,))]
    context = builder.compose(turns, system=system)
    return Arrival(
        message=message,
        spans=context.spans(message),
        context=context.ids + builder.ask(context),
        texts=context.texts(message),
    )
