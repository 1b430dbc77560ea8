"""What a bridge learns from and is measured on: a message, and what the receiver says after it.

A message is text, a passage with facts, or records. To be as long as is drawn, it gets other text
around it, and questions may ask for any part of it.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import exp, log

import torch
from torch import Tensor

from unspoken.channels.bridges.align import align
from unspoken.channels.data.passages import (
    FactPassage,
    cloze,
    fact_passages,
    recall_question,
    recall_records,
    render_recall,
)
from unspoken.channels.data.rows import question_prompt
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import TextModel

SHORTEST, WORDS = 30, 190
"""Words of a plain message: at least, else the piece of text is passed over; and about how many."""

SHORT = 128
"""Tokens of the shortest messages, where their lengths are drawn."""

ROOM = 512
"""Positions that are left to what stands around a message."""

WORDS_A_TOKEN = 0.75


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
    """A message, and what is asked of it.

    Attributes:
        text: The message's words.
        targets: What may follow it.
        frame: Frame at both ends.
    """

    text: str
    targets: tuple[Target, ...]
    frame: str = "bare"


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long messages are: drawn log-uniformly.

    Attributes:
        longest: Tokens of the longest, more than `SHORT`.
        tokens: Counts a text's tokens.
    """

    longest: int
    tokens: Callable[[str], int]

    @classmethod
    def of(cls, longest: int | None, *models: TextModel) -> "Lengths | None":
        """Lengths that all of some models can hold, counted by the one that has most tokens.

        Args:
            longest: Tokens of the longest message; None for messages as they come, which have some
                230 tokens.
            models: Those that read the messages.

        Returns:
            None where messages are taken as they come: also for models that hold few tokens.
        """
        if longest is None:
            return None
        most = min(longest, *(model.max_positions - ROOM for model in models))

        def tokens(text: str) -> int:
            return max(len(model.words(text)[0]) for model in models)

        return cls(most, tokens) if most > SHORT else None

    def draw(self, rng: random.Random) -> int:
        """Tokens of a message."""
        return round(SHORT * exp(rng.random() * log(self.longest / SHORT)))


def mean_length(longest: int | None) -> float:
    """Tokens of a message in the mean, as `Lengths` draws them up to `longest`."""
    if longest is None or longest <= SHORT:
        return 230.0
    return (longest - SHORT) / log(longest / SHORT)


def draw_samples(
    pieces: Iterator[str], seed: int, lengths: Lengths | None = None
) -> Iterator[Sample]:
    """Samples without end: half plain text, half private facts.

    Plain text asks for a continuation, a repeated stretch or a blank. Passages ask for facts,
    records for a value.

    Args:
        pieces: Pieces of plain text, without end.
        seed: Of all that is drawn.
        lengths: How long the messages are; None for as they come.
    """
    rng = random.Random(seed)
    surround = _Surround(pieces, rng, lengths)
    facts = fact_passages(seed)
    while True:
        frame = rng.choice(("bare", "chat"))
        draw = rng.random()
        if draw < 0.56:
            sample = _plain(next(pieces), rng, frame, surround)
        elif draw < 0.84:
            sample = surround.sample(fact_sample(next(facts), rng, 3, frame))
        else:
            sample = surround.sample(_records(rng, frame))
        if sample is not None:
            yield sample


@dataclass(frozen=True, slots=True)
class _Surround:
    """Makes messages as long as is drawn, with other pieces of text around them."""

    pieces: Iterator[str]
    rng: random.Random
    lengths: Lengths | None

    def wanted(self) -> int | None:
        """Tokens of the next message; None for as it comes."""
        return None if self.lengths is None else self.lengths.draw(self.rng)

    def sample(self, sample: Sample) -> Sample:
        """A sample whose message lies somewhere in other text."""
        return replace(sample, text=self.text(sample.text, self.wanted(), last=False))

    def text(self, text: str, wanted: int | None, *, last: bool) -> str:
        """A message with text around it.

        Args:
            text: What is asked about.
            wanted: Tokens of all; None, or fewer than `text` has, for `text` alone.
            last: Whether nothing may follow it.
        """
        if self.lengths is None or wanted is None:
            return text
        left, before, after = wanted - self.lengths.tokens(text), list[str](), list[str]()
        while left > 0:
            piece = next(self.pieces).strip()
            tokens = self.lengths.tokens(piece)
            if tokens > left:
                spaces = [index for index, letter in enumerate(piece) if letter.isspace()]
                words = len(spaces) * left // tokens
                if not words:
                    break
                piece = piece[: spaces[words - 1]]
            (before if last or self.rng.random() < 0.5 else after).append(piece)
            left -= tokens
        return "\n\n".join([*before, text, *after])


def fact_sample(passage: FactPassage, rng: random.Random, most: int, frame: str) -> Sample:
    """A passage, and at most `most` of the questions about it."""
    asked = rng.sample(passage.questions, min(most, len(passage.questions)))
    targets = (Target(question_prompt(q.question), f" {q.answer}", "fact") for q in asked)
    return Sample(passage.text, tuple(targets), frame)


def _plain(piece: str, rng: random.Random, frame: str, surround: _Surround) -> Sample | None:
    """A message that ends with about `WORDS` words of a piece, and what follows them there."""
    spaces = [index for index, letter in enumerate(piece) if letter.isspace()]
    length = min(int(WORDS * rng.uniform(0.5, 1.2)), len(spaces) - 60)
    wanted = surround.wanted()
    if wanted is not None:
        length = min(length, int(WORDS_A_TOKEN * wanted))
    if length < SHORTEST:
        return None
    start = rng.randrange(len(spaces) - length - 55)
    first, cut, end = (spaces[start + n] for n in (0, length, length + 55))
    text = surround.text(piece[first:cut].lstrip(), wanted, last=True)
    targets = [Target("", piece[cut:end])]
    for _ in range(rng.choice((1, 2))):
        question = cloze(text, rng)
        if question is not None:
            targets.append(
                Target(question_prompt(question.question), f" {question.answer}", "cloze")
            )
    if rng.random() < 0.5:
        targets.append(_copy(text, rng))
    return Sample(text, tuple(targets), frame)


def _copy(text: str, rng: random.Random) -> Target:
    """A stretch of the message once more: its first words are the cue, the next the answer."""
    spaces = [index for index, letter in enumerate(text) if letter.isspace()]
    start = rng.randrange(max(len(spaces) - 34, 1))
    a, b, c = (spaces[min(start + n, len(spaces) - 1)] for n in (0, 8, 32))
    return Target(f"\n\nAgain:{text[a:b]}", text[b:c] or text[a:c], "copy")


def _records(rng: random.Random, frame: str) -> Sample:
    uuid = rng.random() < 0.5
    style = {"keys": "uuid", "values": "uuid"} if uuid else {}
    records, key, value = recall_records(
        rng, rng.randint(2, 6) if uuid else rng.randint(3, 8), **style
    )
    targets = [Target(f"\n\n{recall_question(key)}", f" {value}", "recall")]
    return Sample(render_recall(records), tuple(targets), frame)


@dataclass(frozen=True, slots=True)
class TokenizedTarget:
    """A target in the receiver's tokens.

    Attributes:
        ids: Those of the prompt, then those of the answer.
        count: How many of them are the answer's.
        kind: As `Target.kind`.
    """

    ids: tuple[int, ...]
    count: int
    kind: str


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenizedSample:
    """A sample in the receiver's tokens, with the sharer's state of its message.

    Attributes:
        ids: The receiver's context up to the message's last token.
        at: Position of the message's first token.
        state: The sharer's state over the message.
        rows: The sharer's position for each message token, (message tokens,) int64.
        targets: What is asked of it.
    """

    ids: tuple[int, ...]
    at: int
    state: KVState
    rows: Tensor
    targets: tuple[TokenizedTarget, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the message."""
        return len(self.ids) - self.at


@torch.no_grad()
def prepare(
    sample: Sample, sharer: TextModel, receiver: TextModel, *, longest: int = 64
) -> TokenizedSample:
    """Tokenize a sample for both models and let the sharer read its message.

    Args:
        sample: The sample.
        sharer: Reads the message.
        receiver: Gets the message's ids.
        longest: Most tokens of an answer.
    """
    theirs, ours = sharer.frame(sample.frame), receiver.frame(sample.frame)
    read, ends = sharer.words(sample.text)
    words, receiver_ends = receiver.words(sample.text)
    state = sharer.read((*theirs.before, *read))
    rows = torch.tensor(align(ends, receiver_ends), device=sharer.device) + len(theirs.before)
    targets = []
    for target in sample.targets:
        asked = receiver.words(target.prompt)[0] + (ours.ask if target.prompt else ())
        shown = target.answer.lstrip() if target.prompt and ours.ask else target.answer
        answer = receiver.words(shown)[0][:longest]
        if answer:
            targets.append(TokenizedTarget((*asked, *answer), len(answer), target.kind))
    ids, at = (*ours.before, *words), len(ours.before)
    return TokenizedSample(ids=ids, at=at, state=state, rows=rows, targets=tuple(targets))
