"""A chain of hand-overs: each desk takes over all that was said, adds a note, and hands all on.

What a hop computed is kept for the next one. A question at the end of some hops goes on from the
state of its hop, and so does the text's answer from the state of the text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from unspoken.agents.bench.forced import prefilled, score
from unspoken.agents.bench.scene import make_message
from unspoken.agents.engines.assembly import Past, assemble
from unspoken.agents.engines.base import Inbound, Sampling, TurnRequest
from unspoken.agents.engines.turn import drive_turn
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn, Context, Quote
from unspoken.channels.base import Arrival, Channel
from unspoken.channels.data.rows import QaRow, f1
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message, Segment, common_prefix

NEW = 16
HOPS = (1, 2, 3, 5)
TEXT, ANOTHER, NOTHING = "text", "another chain's message", "no message"

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Desk:
    """One agent of a chain.

    Attributes:
        model: Its model.
        system: Its system prompt.
        channel: How it takes what it is handed.
        note: What it adds.
        writes: Most tokens that it writes itself after its note; 0 for none.
    """

    model: LocalModel
    system: str | None
    channel: Channel
    note: str
    writes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Standing:
    """What a desk was handed, in its context.

    Attributes:
        desk: The desk.
        message: What it was handed.
        past: The ids that stand before its own note, and more, with their state as it came.
    """

    desk: Desk
    message: Message
    past: Past

    def asked(self, prompt: str) -> Ids:
        """The ids of a context in which the desk is asked in place of its note."""
        builder = self.desk.model.context_builder
        return _context(self.desk, self.message, prompt).ids + builder.ask()

    def alone(self, prompt: str) -> Ids:
        """The same without what it was handed."""
        builder = self.desk.model.context_builder
        own = builder.compose([ChatTurn("user", (prompt,))], system=self.desk.system)
        return own.ids + builder.ask()


def walk(desks: Sequence[Desk], words: Ids) -> Iterator[Standing]:
    """Hand a passage from desk to desk; what each was handed, from the second desk on.

    Args:
        desks: The desks, the reader's first.
        words: Token ids of the passage's words.
    """
    first = desks[0]
    read = make_message(first.model, words, first.system, "user", "")
    message = _whole(first.model, read)
    for desk in desks[1:]:
        context = _context(desk, message, desk.note)
        past = Past(context.ids, _carried(desk, message, context))
        yield Standing(desk=desk, message=message, past=past)
        message = _handed_on(desk, context, past)


def _context(desk: Desk, message: Message, prompt: str) -> Context:
    """All that was handed over, and a prompt of the desk's own."""
    quotes = [ChatTurn(part.role, (Quote(message, part),)) for part in message.segments]
    own = ChatTurn("user", (prompt,))
    return desk.model.context_builder.compose([*quotes, own], system=desk.system)


@torch.no_grad()
def _carried(desk: Desk, message: Message, context: Context) -> KVState:
    """The state of a desk's context, with the message's own state in it."""
    model = desk.model
    arrival = Arrival(
        message=message,
        spans=context.spans(message),
        context=context.ids,
        texts=context.texts(message),
    )
    inbound = Inbound(
        edge=0,
        sharer="sharer",
        receiver="receiver",
        channel=desk.channel,
        message=message,
        arrival=arrival,
        fallback=False,
    )
    opening = model.context_builder.opening(desk.system).ids
    past = Past(opening, model.read(opening)) if opening else None
    parts = assemble(model, context.ids, [inbound], past)
    return prefilled(model, context.ids, parts.states, parts.missing)


def _handed_on(desk: Desk, context: Context, past: Past) -> Message:
    """All turns but the system's, with their state in the desk's context."""
    model, ids, state = desk.model, context.ids, past.state
    segments = context.segments
    if desk.writes:
        ask, close = model.context_builder.ask(), model.template.wrappers["assistant"][1]
        words = written(model, (*ids, *ask), past, desk.writes)
        own = (*ask, *words, *model.text.encode(close))
        content = (len(ask), len(ask) + len(words))
        text = model.text.decode(words)
        said = Segment(role="assistant", ids=own, content=content, text=text, position=len(ids))
        segments, ids = (*segments, said), (*ids, *own)
        state = prefilled(model, ids, [state], range(len(context.ids), len(ids)))
    message = Message(
        sharer="sharer",
        segments=tuple(part for part in segments if part.role != "system"),
        whole=True,
        context=ids,
        identity=model.identity,
        state=state,
    )
    return _whole(model, message)


def _whole(model: LocalModel, message: Message) -> Message:
    """A message of whole turns, with its tokens' character ends, which a bridge needs."""
    segments = tuple(
        replace(part, ends=model.text.ends(part.words, part.text)) for part in message.segments
    )
    return replace(message, segments=segments, whole=True)


def beginning(ids: Ids, past: Past) -> Past:
    """As much of a past as a context begins with, less the last token, which is computed anew."""
    stop = min(common_prefix(ids, past.ids), len(ids) - 1)
    return Past(ids[:stop], past.state.slice(0, stop))


def written(model: LocalModel, ids: Ids, past: Past, most: int) -> Ids:
    """The likeliest words after a context, as a turn writes them, less the token that ends them."""
    sampling = Sampling(max_tokens=most, stop_ids=frozenset(model.stop_ids))
    request = TurnRequest(ids=ids, sampling=sampling)
    begin = beginning(ids, past)
    computed = drive_turn(model, request, begin if begin.ids else None)[1]
    return computed.ids[len(ids) :]


@torch.no_grad()
def logs_after(model: LocalModel, ids: Ids, past: Past, forced: Ids) -> Tensor:
    """Log-probabilities of each forced token's place after a context, (forced, vocabulary)."""
    begin = beginning(ids, past)
    new = model.tensor((*ids[len(begin.ids) :], *forced[:-1]))
    states = [begin.state] if begin.ids else []
    return model.logits(new, states, last=len(forced)).float().log_softmax(dim=-1)


def answered(
    model: LocalModel, ids: Ids, past: Past, most: int, guess: Ids = ()
) -> tuple[Ids, Tensor | None]:
    """The likeliest answer after a context, the token that ends it included where one does.

    Args:
        model: The model.
        ids: The context.
        past: What of it has a state.
        most: Most tokens of the answer.
        guess: What the answer may be. One pass tells how far it is; the rest is written.

    Returns:
        The answer, and the log-probabilities of the guess's places; None without a guess.
    """
    logs, said = None, tuple[int, ...]()
    if guess:
        logs = logs_after(model, ids, past, guess)
        likeliest = tuple(logs.argmax(dim=-1).tolist())
        same = common_prefix(likeliest, guess)
        said = likeliest[: same + 1]
    if said and (said[-1] in model.stop_ids or len(said) == most):
        return said, logs
    said += written(model, (*ids, *said), past, most - len(said))
    if len(said) < most:
        end = int(logs_after(model, (*ids, *said), past, (0,))[0].argmax())
        said = (*said, end)
    return said, logs


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What a desk makes of what reached it by one way.

    Attributes:
        kl: Mean KL(full || reached) in nats over the tokens of text's answer.
        equal: Whether its answer is text's, token by token.
        f1: Of its answer.
        tokens: Tokens of its context.
    """

    kl: float
    equal: bool
    f1: float
    tokens: int


Chain = dict[tuple[str, int], Reached]
"""What reached the desks of one chain, by way and number of hops."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Way:
    """A way to hand on, and who does so.

    Attributes:
        name: The way.
        desks: The desks, the reader's first.
        hops: After how many hops they are asked.
        controls: Whether another chain's message and none are measured beside it.
    """

    name: str
    desks: tuple[Desk, ...]
    hops: tuple[int, ...] = HOPS
    controls: bool = False


def chain(way: Way, row: QaRow, other: QaRow) -> Chain:
    """One passage handed on, and what is known of it after each number of hops.

    Args:
        way: By which way.
        row: The passage, a question about it, and its answers.
        other: The passage of another chain, for the control.
    """
    prompt, reached, guesses = f"Question: {row.question}", Chain(), dict[LocalModel, Ids]()
    others = walk(way.desks, _words(way, other)) if way.controls else None
    for hop, standing in enumerate(walk(way.desks, _words(way, row)), 1):
        swapped = None if others is None else next(others)
        if hop not in way.hops:
            continue
        model = standing.desk.model
        ids = standing.asked(prompt)
        text = Past(ids, model.read(ids))
        guess = guesses.get(model, ())
        said, full = answered(model, ids, text, NEW, guess)
        if full is None or said != guess:
            guesses[model], full = said, logs_after(model, ids, text, said)
        graded = partial(_reached, model, full, said, row)
        reached[TEXT, hop] = graded(ids, text)
        reached[way.name, hop] = graded(ids, standing.past)
        if swapped is not None and hop in (way.hops[0], way.hops[-1]):
            wrong = swapped.asked(prompt)
            reached[ANOTHER, hop] = graded(wrong, swapped.past)
            reached[NOTHING, hop] = graded(standing.alone(prompt), Past((), text.state))
    return reached


def _words(way: Way, row: QaRow) -> Ids:
    return way.desks[0].model.text.encode_words(row.context)


def _reached(
    model: LocalModel, full: Tensor, said: Ids, row: QaRow, ids: Ids, past: Past
) -> Reached:
    """What a context with some state leads to, beside text's distributions and answer."""
    answer, logs = answered(model, ids, past, NEW, said)
    assert logs is not None  # text's answer has a token at least: the one that ends it
    return Reached(
        kl=score(full, logs).kl,
        equal=answer == said,
        f1=f1(model.text.decode(answer), row.answers),
        tokens=len(ids),
    )
