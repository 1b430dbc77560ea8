"""A sharer's message and a receiver that answers to it: the same scene for every way of handing it
over.
"""

from dataclasses import dataclass

from unspoken.agents.engines.turn import Inbound
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn, Context, Quote
from unspoken.channels.base import Arrival, Channel
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message, Segment

__all__ = ["Scene"]


@dataclass(frozen=True, slots=True)
class Scene:
    """A message in its receiver's context.

    Attributes:
        message: The sharer's message, with its state.
        context: The receiver's context, without what asks for the assistant's words.
        history: Ids and state of the receiver's leading system turn, as its own prefix cache holds
            them; None for none.
        new_ids: The receiver's tokens after the message, those that ask for the assistant's words
            included.
    """

    message: Message
    context: Context
    history: tuple[tuple[int, ...], KVState] | None
    new_ids: tuple[int, ...]

    @classmethod
    def make(
        cls,
        model: LocalModel,
        words: tuple[int, ...],
        *,
        new_tokens: int | None = None,
        prompt: str = "Question: What does the text say first? Answer in few words.",
        sharer_system: str | None = None,
        receiver_system: str | None = None,
        role: str = "user",
        sharer_prompt: str = "",
    ) -> "Scene":
        """Compute a message of `words` under the sharer's own prompt, and compose its receiver's
        context.

        Args:
            model: The model of both.
            words: Token ids of the message's words.
            new_tokens: Receiver's tokens after the message, padded or cut to it; None leaves the
                prompt as it is.
            prompt: The receiver's prompt.
            sharer_system: The sharer's system prompt.
            receiver_system: The receiver's system prompt.
            role: ``user`` for a prompt that is shared, ``assistant`` for an output.
            sharer_prompt: The prompt that an output answers.
        """
        message = make_message(model, words, sharer_system, role, sharer_prompt)
        segment = message.segments[0]
        composer = model.context_builder
        opening = composer.opening(receiver_system)
        context = composer.compose(
            [ChatTurn("user", (Quote(message, segment),)), ChatTurn("user", (prompt,))],
            system=receiver_system,
        )
        after = len(context.segments[-1].ids) + len(composer.ask(context))
        if new_tokens is not None and after != new_tokens:
            context = _with_new_tokens(model, message, new_tokens, prompt, receiver_system)
        first = context.segments[-1].position
        history = None
        if opening.ids:
            history = (opening.ids, model.prefill(model.tensor(opening.ids)).state)
        new = context.ids[first:] + composer.ask(context)
        return cls(message, context, history, new)

    def delivery(self, channel: Channel) -> Inbound:
        """The message's delivery by a channel."""
        arrival = Arrival(self.message, self.context.spans(self.message), self.context.ids)
        return Inbound(0, "sharer -> receiver", channel, arrival, fallback=False)


def make_message(
    model: LocalModel, words: tuple[int, ...], system: str | None, role: str, prompt: str
) -> Message:
    """A message of `words`, its state computed in the sharer's own context."""
    composer = model.context_builder
    before, after = model.template.wrappers[role]
    context = composer.opening(system)
    if role == "assistant":
        context = composer.compose([ChatTurn("user", (prompt,))], system=system)
        before = model.template.prompt
    head, tail = model.text.encode(before), model.text.encode(after)
    segment = Segment(
        role,
        (*head, *words, *tail),
        (len(head), len(head) + len(words)),
        model.text.decode(words),
        len(context.ids),
    )
    ids = context.ids + segment.ids
    state = model.prefill(model.tensor(ids)).state
    return Message("sharer", (segment,), False, ids, model.identity, state)


def _with_new_tokens(
    model: LocalModel, message: Message, count: int, prompt: str, system: str | None
) -> Context:
    """The context whose last turn and generation prompt have `count` tokens: the prompt's words cut
    or repeated.
    """
    composer = model.context_builder
    words = list(model.text.encode_words(prompt))
    empty = composer.compose(
        [ChatTurn("user", (Quote(message, message.segments[0]),)), ChatTurn("user", ("x",))],
        system=system,
    )
    around = len(empty.segments[-1].ids) - 1 + len(composer.ask(empty))
    wanted = count - around
    words = (words * (wanted // len(words) + 1))[:wanted]
    segment = Segment("user", tuple(words), (0, len(words)), model.text.decode(words), 0)
    carrier = Message("prompt", (segment,), False, tuple(words), model.identity)
    turns = [
        ChatTurn("user", (Quote(message, message.segments[0]),)),
        ChatTurn("user", (Quote(carrier, segment),)),
    ]
    return composer.compose(turns, system=system)
