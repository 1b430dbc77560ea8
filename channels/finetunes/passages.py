"""Messages and what is forced after them: what a profile is measured on."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from unspoken.channels.base import Arrival, Span
from unspoken.channels.data.rows import QaRow, question_prompt
from unspoken.channels.errors import InputError
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message, Segment
from unspoken.channels.model import TextModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a profile is measured.

    Attributes:
        tokens: Tokens of a message, at most.
        forced: Tokens that are forced after it, at most.
        search: Messages that ranges are searched on.
        assess: Other messages, on which what was found is measured.
        prompts: Lengths in tokens of the receiver's own prompts before a message, besides none.
        sink: Tokens at the start of a shifted message that the receiver computes itself.
        seed: Of what is drawn.
    """

    tokens: int = 256
    forced: int = 48
    search: int = 8
    assess: int = 16
    prompts: tuple[int, ...] = (24, 200)
    sink: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trial:
    """A message in a frame of its own, and what is forced after it.

    Attributes:
        ids: The sharer's context up to the message's last token.
        at: Position of the message's first token there.
        forced: Ids that are forced after the message.
    """

    ids: tuple[int, ...]
    at: int
    forced: tuple[int, ...]

    @property
    def words(self) -> tuple[int, ...]:
        """The message's own tokens."""
        return self.ids[self.at :]


def from_text(text: str, model: TextModel, settings: Settings) -> list[Trial]:
    """Passages spread evenly over a text; what follows each in the text is forced.

    Raises:
        InputError: The text is too short.
    """
    before = model.frame("chat").before
    ids = model.words(text)[0]
    count, size = settings.search + settings.assess, settings.tokens + settings.forced
    if len(ids) < count * size:
        raise InputError(
            f"the text has {len(ids)} tokens",
            expected=f"at least {count * size}, for {count} passages of {size}",
            fix="give a longer text, or ask for fewer passages",
        )
    stride = (len(ids) - size) // max(count - 1, 1)
    order = list(range(count))
    random.Random(settings.seed).shuffle(order)
    passages = [ids[number * stride : number * stride + size] for number in order]
    return [
        Trial((*before, *passage[: settings.tokens]), len(before), passage[settings.tokens :])
        for passage in passages
    ]


def from_rows(rows: Sequence[QaRow], model: TextModel, settings: Settings) -> list[Trial]:
    """A row's context as the message; its question and its first answer are forced.

    Raises:
        InputError: Too few rows with a context short enough.
    """
    count = settings.search + settings.assess
    drawn = random.Random(settings.seed).sample(list(rows), len(rows))
    trials = list(islice(_asked(drawn, model, settings), count))
    if len(trials) < count:
        raise InputError(
            f"{len(trials)} of {len(rows)} rows have a context of at most {2 * settings.tokens} "
            "tokens and an answer",
            expected=f"at least {count}",
            fix="give more rows, or ask for fewer passages",
        )
    return trials


def _asked(rows: Sequence[QaRow], model: TextModel, settings: Settings) -> Iterator[Trial]:
    frame = model.frame("chat")
    for row in rows:
        words = model.words(row.context)[0]
        if not row.answers or not 0 < len(words) <= 2 * settings.tokens:
            continue
        question = model.words(question_prompt(row.question))[0]
        answer = model.words(row.answers[0])[0]
        forced = (*question, *frame.ask, *answer)
        yield Trial((*frame.before, *words), len(frame.before), forced)


def prompt_of(model: TextModel, tokens: int) -> tuple[int, ...]:
    """A prompt of the receiver's own, of so many tokens."""
    opening = model.frame("bare").before
    rules = model.words(
        "You are a careful reader. Read what follows, keep to what it says, and answer in few "
        "words. Where the text does not say something, say that it does not. Never guess a name "
        "or a number. "
    )[0]
    need = max(tokens - len(opening), 0)
    return (*opening, *(rules * (need // len(rules) + 1))[:need])


def arrival_of(trial: Trial, state: KVState, prompt: Sequence[int] = ()) -> Arrival:
    """The trial's message on its way to a receiver.

    Args:
        trial: The trial.
        state: The sharer's state of `trial.ids`.
        prompt: What stands before the message at the receiver; nothing of its own leaves the
            sharer's frame there.
    """
    words = trial.words
    segment = Segment(
        role="user", ids=trial.ids, content=(trial.at, len(trial.ids)), text="", position=0
    )
    message = Message(
        sharer="sharer",
        segments=(segment,),
        whole=False,
        context=trial.ids,
        identity=state.identity,
        state=state,
    )
    context = (*prompt, *words) if prompt else trial.ids
    spans = (Span(len(context) - len(words), trial.at, len(words)),)
    return Arrival(message=message, spans=spans, context=context)
