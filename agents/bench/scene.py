"""A sharer's message and its receiver's context: one scene for every way of handing it over."""

from dataclasses import dataclass

from unspoken.agents.engines.assembly import Past
from unspoken.agents.engines.base import Inbound
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn, Context, Quote
from unspoken.channels.base import Arrival, Channel
from unspoken.channels.message import Message, Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A message in its receiver's context.

    Attributes:
        message: The sharer's message, with its state.
        context: The receiver's context, without what asks for the assistant's words.
        ids: Its token ids, with those that ask for the assistant's words.
        empty_ids: The same without the message.
        history: The receiver's leading system turn, as its own prefix cache holds it; None for
            none.
    """

    message: Message
    context: Context
    ids: tuple[int, ...]
    empty_ids: tuple[int, ...]
    history: Past | None

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
        """Compute a message of `words` under the sharer's own prompt, and compose its context.

        Args:
            model: The model of both.
            words: Token ids of the message's words.
            new_tokens: Receiver's tokens after the message: the prompt is repeated or cut until
                there are so many. None leaves it as it is.
            prompt: The receiver's prompt.
            sharer_system: The sharer's system prompt.
            receiver_system: The receiver's system prompt.
            role: ``user`` for a prompt that is shared, ``assistant`` for an output.
            sharer_prompt: The prompt that an output answers.
        """
        message = make_message(model, words, sharer_system, role, sharer_prompt)
        quote = ChatTurn("user", (Quote(message, message.segments[0]),))
        builder = model.context_builder

        def compose(*turns: ChatTurn) -> tuple[Context, tuple[int, ...]]:
            context = builder.compose(turns, system=receiver_system)
            return context, context.ids + builder.ask()

        ending = ChatTurn("user", (prompt,))
        context, ids = compose(quote, ending)
        if new_tokens is not None:
            last = context.segments[-1]
            start, stop = last.content
            around = len(ids) - last.position - (stop - start)
            ending = ChatTurn("user", (_exactly(model, prompt, new_tokens - around),))
            context, ids = compose(quote, ending)
        opening = builder.opening(receiver_system).ids
        history = Past(opening, model.read(opening)) if opening else None
        return cls(
            message=message, context=context, ids=ids, empty_ids=compose(ending)[1], history=history
        )

    @property
    def new_ids(self) -> tuple[int, ...]:
        """The receiver's tokens after the message."""
        return self.ids[self.context.segments[-1].position :]

    def delivery(self, channel: Channel, sent: Message | None = None) -> Inbound:
        """The message as it arrives by a channel; or another of as many tokens in its place."""
        spans = self.context.spans(self.message)
        return Inbound(
            edge=0,
            sharer="sharer",
            receiver="receiver",
            channel=channel,
            message=self.message,
            arrival=Arrival(message=sent or self.message, spans=spans, context=self.context.ids),
            fallback=False,
        )


def make_message(
    model: LocalModel, words: tuple[int, ...], system: str | None, role: str, prompt: str
) -> Message:
    """A message of `words`, its state computed in the sharer's own context."""
    builder = model.context_builder
    before, after = model.template.wrappers[role]
    context = builder.opening(system)
    if role == "assistant":
        context = builder.compose([ChatTurn("user", (prompt,))], system=system)
        before = model.template.prompt
    head, tail = model.text.encode(before), model.text.encode(after)
    segment = Segment(
        role=role,
        ids=(*head, *words, *tail),
        content=(len(head), len(head) + len(words)),
        text=model.text.decode(words),
        position=len(context.ids),
    )
    ids = context.ids + segment.ids
    return Message(
        sharer="sharer",
        segments=(segment,),
        whole=False,
        context=ids,
        identity=model.identity,
        state=model.read(ids),
    )


def _exactly(model: LocalModel, text: str, count: int) -> Quote:
    """`count` tokens of a text, which is cut or repeated."""
    words = model.text.encode_words(text)
    ids = (words * (count // len(words) + 1))[:count]
    segment = Segment(
        role="user", ids=ids, content=(0, count), text=model.text.decode(ids), position=0
    )
    return Quote(
        Message(
            sharer="prompt", segments=(segment,), whole=False, context=ids, identity=model.identity
        ),
        segment,
    )
