"""Texts turned into what a bridge learns from and is measured on: a message, and what the receiver
writes after it.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from unspoken.channels.bridges.align import align
from unspoken.channels.data.passages import (
    cloze,
    fact_passages,
    recall_question,
    recall_records,
    render_recall,
)
from unspoken.channels.data.rows import question_prompt
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import TextModel

__all__ = [
    "Sample",
    "Target",
    "TokenizedSample",
    "prepare",
    "teach",
]

SHORTEST = 30
"""Words of a plain message at least; shorter pieces of text are passed over."""


@dataclass(frozen=True, slots=True)
class Target:
    """What comes after a message.

    Attributes:
        prompt: Text between the message and the answer; empty where the answer goes on with the
            message.
        answer: Text that is scored.
        kind: ``text``, ``copy``, ``fact``, ``cloze`` or ``recall``.
    """

    prompt: str
    answer: str
    kind: str = "text"


@dataclass(frozen=True, slots=True)
class Sample:
    """A message with its tails.

    Attributes:
        text: The message's words.
        tails: What may follow it.
        frame: Frame at both ends.
    """

    text: str
    tails: tuple[Target, ...]
    frame: str = "bare"


def teach(pieces: Iterator[str], seed: int, *, words: int = 190) -> Iterator[Sample]:
    """Lessons without end: half plain text, half private facts.

    Of plain text the receiver is asked to go on with the message, to repeat a stretch of it and to
    fill a blank; of synthetic passages, for their facts; of records, for a value.

    Args:
        pieces: Pieces of plain text, without end.
        seed: Of all that is drawn.
        words: About how many words a plain message has.
    """
    rng = random.Random(seed)
    facts = fact_passages(seed)
    while True:
        frame = rng.choice(("bare", "chat"))
        draw = rng.random()
        if draw < 0.56:
            lesson = _plain(next(pieces), rng, words, frame)
        elif draw < 0.84:
            passage = next(facts)
            asked = rng.sample(passage.questions, min(3, len(passage.questions)))
            tails = tuple(
                Target(question_prompt(q.question), f" {q.answer}", "fact") for q in asked
            )
            lesson = Sample(passage.text, tails, frame)
        else:
            lesson = _records(rng, frame)
        if lesson is not None:
            yield lesson


def _plain(piece: str, rng: random.Random, words: int, frame: str) -> Sample | None:
    """A message of about `words` words, and what follows it in the piece."""
    spaces = [at for at, letter in enumerate(piece) if letter.isspace()]
    length = min(int(words * rng.uniform(0.5, 1.2)), len(spaces) - 60)
    if length < SHORTEST:
        return None
    start = rng.randrange(len(spaces) - length - 55)
    first, cut, end = (spaces[start + n] for n in (0, length, length + 55))
    text = piece[first:cut].lstrip()
    tails = [Target("", piece[cut:end])]
    for _ in range(rng.choice((1, 2))):
        question = cloze(text, rng)
        if question is not None:
            tails.append(Target(question_prompt(question.question), f" {question.answer}", "cloze"))
    if rng.random() < 0.5:
        tails.append(_copy(text, rng))
    return Sample(text, tuple(tails), frame)


def _copy(text: str, rng: random.Random) -> Target:
    """A stretch of the message once more: its first words as the cue, the next ones to be repeated."""
    spaces = [at for at, letter in enumerate(text) if letter.isspace()]
    start = rng.randrange(max(len(spaces) - 34, 1))
    a, b, c = (spaces[min(start + n, len(spaces) - 1)] for n in (0, 8, 32))
    return Target(f"\n\nAgain:{text[a:b]}", text[b:c] or text[a:c], "copy")


def _records(rng: random.Random, frame: str) -> Sample:
    uuid = rng.random() < 0.5
    style = {"keys": "uuid", "values": "uuid"} if uuid else {}
    records, key, value = recall_records(
        rng, rng.randint(2, 6) if uuid else rng.randint(3, 8), **style
    )
    tails = [Target(f"\n\n{recall_question(key)}", f" {value}", "recall")]
    return Sample(render_recall(records), tuple(tails), frame)


@dataclass(frozen=True, eq=False)
class TokenizedSample:
    """A lesson in the receiver's tokens, with the sharer's state for it.

    Attributes:
        ids: The receiver's context up to the message's last token.
        at: Position of the message's first token.
        state: The sharer's state over the message.
        rows: The sharer's position for each message token, (message tokens,) int64.
        tails: Per tail, its ids (the answer's last), and how many of them are the answer's.
        kinds: Per tail, its kind.
    """

    ids: tuple[int, ...]
    at: int
    state: KVState
    rows: Tensor
    tails: tuple[tuple[tuple[int, ...], int], ...]
    kinds: tuple[str, ...] = field(default=())

    @cached_property
    def tokens(self) -> int:
        """Tokens of the message."""
        return len(self.ids) - self.at


@torch.no_grad()
def prepare(
    lesson: Sample, sharer: TextModel, receiver: TextModel, *, longest: int = 64
) -> TokenizedSample:
    """Tokenise a lesson for both models and let the sharer read its message.

    Args:
        lesson: The lesson.
        sharer: Reads the message.
        receiver: Gets the message's ids.
        longest: Most tokens of an answer.
    """
    theirs, ours = sharer.frame(lesson.frame), receiver.frame(lesson.frame)
    read, ends = sharer.words(lesson.text)
    words, receiver_ends = receiver.words(lesson.text)
    state = sharer.read((*theirs.before, *read))
    rows = torch.tensor(align(ends, receiver_ends), device=sharer.device) + len(theirs.before)
    tails, kinds = [], []
    for tail in lesson.tails:
        asked = receiver.words(tail.prompt)[0] + (ours.ask if tail.prompt else ())
        shown = tail.answer.lstrip() if tail.prompt and ours.ask else tail.answer
        answer = receiver.words(shown)[0][:longest]
        if answer:
            tails.append(((*asked, *answer), len(answer)))
            kinds.append(tail.kind)
    return TokenizedSample(
        (*ours.before, *words), len(ours.before), state, rows, tuple(tails), tuple(kinds)
    )
