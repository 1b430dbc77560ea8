"""Rows of an audit: passages of text, questions about a context, records to recall from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from unspoken.channels.bridges.audit.contexts import TaskRows
from unspoken.channels.bridges.bounds import DRAWN
from unspoken.channels.bridges.fit.samples import Sample, Target
from unspoken.channels.data.recall import recall_question, render_recall
from unspoken.channels.data.rows import ChoiceRow, QaRow, RecallRow, question_prompt
from unspoken.channels.errors import InputError
from unspoken.channels.model import TextModel
from unspoken.channels.storage.side import AuditFile


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRows:
    """Rows of the three kinds.

    Attributes:
        text: Plain text that passages are cut from.
        qa: Questions.
        recall: Records.
        files: The files these came from; empty where all are built in.
        brought: Which of ``text``, ``qa``, ``recall`` and ``choice`` came from files.
        choice: Questions with options, for fuse mode.
        passages: How many passages.
        message: Receiver tokens of a passage's message.
        continuation: Receiver tokens after it.
        task: Questions that are asked in a turn as a workflow composes it.
        contexts: Most contexts of the task.
    """

    text: str
    qa: tuple[QaRow, ...]
    recall: tuple[RecallRow, ...]
    files: tuple[AuditFile, ...] = ()
    brought: frozenset[str] = frozenset()
    passages: int = 24
    message: int = 256
    continuation: int = 64
    choice: tuple[ChoiceRow, ...] = ()
    task: TaskRows = field(default_factory=TaskRows)
    contexts: int = DRAWN

    def check(self, receiver: TextModel) -> None:
        """Refuse rows that cannot be measured on.

        Raises:
            InputError: The text is too short, or all rows of a kind have one message.
        """
        for kind in ("continuation", "question", "recall"):
            require_two(self.samples(kind, receiver))

    def samples(self, kind: str, receiver: TextModel) -> list[Sample]:
        """Messages with one answer each, of ``continuation``, ``question`` or ``recall``.

        Raises:
            InputError: The text is too short.
        """
        if kind == "question":
            return [_question(row) for row in self.qa]
        if kind == "recall":
            return [_records(row) for row in self.recall]
        return passages(self.text, receiver, self.passages, self.message, self.continuation)


def require_two(samples: Sequence[Sample]) -> None:
    """Refuse rows among which no message can be compared with another's.

    Raises:
        InputError: All have one message.
    """
    if len({sample.text for sample in samples}) < 2:
        raise InputError(
            f"{len(samples)} rows with one message between them",
            expected="at least two different messages, so that one can be compared with another",
            fix="give a file with more rows",
        )


def passages(
    text: str, receiver: TextModel, count: int, message: int = 256, continuation: int = 64
) -> list[Sample]:
    """Passages spread evenly over a text, each with what follows it there.

    Args:
        text: The text.
        receiver: Counts the tokens.
        count: How many.
        message: Tokens of a message.
        continuation: Tokens after it.

    Raises:
        InputError: The text is too short.
    """
    _, ends = receiver.words(text)
    needed = message + continuation
    if len(ends) < count * needed:
        raise InputError(
            f"the text has {len(ends)} of the receiver's tokens",
            expected=f"at least {count * needed}, for {count} passages of {needed}",
            fix="give a longer file",
        )
    stride = (len(ends) - needed - 1) // max(count - 1, 1)
    samples = []
    for index in range(count):
        first = index * stride
        start, cut, stop = (
            ends[at - 1] if at else 0 for at in (first, first + message, first + needed)
        )
        target = Target("", text[cut:stop])
        samples.append(Sample(text[start:cut], (target,)))
    return samples


def _question(row: QaRow) -> Sample:
    target = Target(question_prompt(row.question), f" {row.answers[0]}", "question")
    return Sample(row.context, (target,), "chat")


def _records(row: RecallRow) -> Sample:
    message = render_recall([list(pair) for pair in row.records])
    return Sample(
        message, (Target(f"\n\n{recall_question(row.key)}", f" {row.value}", "recall"),), "chat"
    )
