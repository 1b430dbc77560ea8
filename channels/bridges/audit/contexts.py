"""The contexts of an audit's task: messages of a size, questions about them, nothing fitted on."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from unspoken.channels.data.overlap import sharing
from unspoken.channels.data.passages import fact_passages
from unspoken.channels.data.rows import QaRow
from unspoken.channels.data.text import Corpus
from unspoken.channels.model import TextModel

GENERATED = 500
"""Generated passages that stand for all that a fit may draw: their sentences repeat."""

BETWEEN = "\n\n"
FEW = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRows:
    """Questions to ask, grouped by the passages that answer them.

    Attributes:
        rows: The questions, of passages that share nothing with what the bridge was fitted on.
        shared: How many passages were left out, since they do.
        checked: Whether the text that the bridge was fitted on was there to be compared.
        source: Where they come from: a file's name, or ``built-in``.
    """

    rows: tuple[QaRow, ...] = ()
    shared: int = 0
    checked: bool = False
    source: str = ""

    @classmethod
    def of(
        cls, rows: Sequence[QaRow], corpus: Corpus | None, *, source: str, checked: bool, seed: int
    ) -> "TaskRows":
        """Those of some questions whose passages share no eight words with the fit's.

        Args:
            rows: The questions.
            corpus: What the bridge was fitted on, beside what every fit generates.
            source: Where the questions come from.
            checked: Whether this is the very corpus of the bridge.
            seed: The fit's.
        """
        passages = list(dict.fromkeys(row.context for row in rows))
        fitted = (passage.text for passage in islice(fact_passages(seed), GENERATED))
        text = () if corpus is None else (*corpus.train, *corpus.validation)
        shared = {passages[number] for number in sharing(passages, chain(text, fitted))}
        left = tuple(row for row in rows if row.context not in shared)
        return cls(rows=left, shared=len(shared), checked=checked, source=source)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskContext:
    """One message and what is asked of it.

    Attributes:
        passage: What answers the questions, as it stands in the message.
        message: The passage among others.
        questions: What is asked.
    """

    passage: str
    message: str
    questions: tuple[QaRow, ...]


def task_contexts(
    rows: Sequence[QaRow],
    receiver: TextModel,
    size: int,
    *,
    count: int,
    questions: int,
    seed: int = 0,
) -> list[TaskContext]:
    """Messages of about `size` receiver tokens, each a passage among other passages.

    A passage that is longer is cut at its end, and questions whose answer goes with it are left
    out. The others come, where there are enough, of passages that are not asked about.

    Args:
        rows: The questions.
        receiver: Counts the tokens.
        size: Tokens of a message.
        count: Most contexts.
        questions: Most questions about one.
        seed: Of all that is drawn.
    """
    rng = random.Random(seed)
    by_passage: dict[str, list[QaRow]] = {}
    for row in rows:
        by_passage.setdefault(row.context.strip(), []).append(row)
    order = rng.sample(list(by_passage), len(by_passage))
    chosen = dict(islice(_answerable(order, by_passage, receiver, size), count))
    spare = [passage for passage in order if passage not in chosen]
    # Of a few passages all messages would hold all: each then stands alone in its own.
    others = spare if len(spare) > 1 else order if len(order) > FEW else []
    contexts = []
    for passage, cut in chosen.items():
        fitting = [row for row in by_passage[passage] if row.answers[0] in cut]
        asked = rng.sample(fitting, min(questions, len(fitting)))
        pool = rng.sample(
            [other for other in others if other != passage], len(others) - (passage in others)
        )
        message = _among(cut, pool, receiver, size, rng)
        contexts.append(TaskContext(passage=cut, message=message, questions=tuple(asked)))
    return [one for n, one in enumerate(contexts) if stranger(contexts, n) is not None]


def _answerable(
    order: Sequence[str], by_passage: dict[str, list[QaRow]], receiver: TextModel, size: int
) -> Iterator[tuple[str, str]]:
    """Passages, each as it fits the size, that still answer a question."""
    for passage in order:
        cut = _cut(passage, receiver, size)
        if any(row.answers[0] in cut for row in by_passage[passage]):
            yield passage, cut


def _cut(text: str, receiver: TextModel, size: int) -> str:
    """The first `size` tokens of a text."""
    _, ends = receiver.words(text)
    return text if len(ends) <= size else text[: ends[size - 1]].rstrip() if size else ""


def _among(
    passage: str, others: Sequence[str], receiver: TextModel, size: int, rng: random.Random
) -> str:
    """A passage at a drawn place among others, as many as make up `size` tokens."""
    room, parts = size - len(receiver.words(passage)[0]), list[str]()
    for other in others:
        taken = _cut(BETWEEN + other, receiver, room).strip()
        if room < 8 or not taken:
            break
        parts.append(taken)
        room -= len(receiver.words(BETWEEN + taken)[0])
    parts.insert(rng.randint(0, len(parts)), passage)
    return BETWEEN.join(parts)


def stranger(contexts: Sequence[TaskContext], index: int) -> int | None:
    """The nearest context before this one, or after it, that cannot answer its questions, if any.

    One that holds an answer by chance serves where there is no other.
    """
    mine = contexts[index]
    answers = [answer for row in mine.questions for answer in row.answers]
    steps = chain(range(index - 1, -1, -1), range(len(contexts) - 1, index, -1))
    different = [n for n in steps if mine.passage not in contexts[n].message]
    without = (n for n in different if not any(a in contexts[n].message for a in answers))
    return next(chain(without, different), None)
