"""What an audit measures on: passages of text, questions about a context, records to recall."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unspoken.channels.bridges.fit.samples import Sample, Target
from unspoken.channels.data.builtin import builtin_text
from unspoken.channels.data.recall import recall_question, render_recall
from unspoken.channels.data.rows import (
    ChoiceRow,
    QaRow,
    RecallRow,
    builtin_choice,
    builtin_qa,
    builtin_recall,
    question_prompt,
    read_choice,
    read_qa,
    read_recall,
)
from unspoken.channels.data.rows import (
    sample as draw,
)
from unspoken.channels.data.sources import read_text
from unspoken.channels.data.text import Corpus
from unspoken.channels.errors import InputError
from unspoken.channels.model import TextModel
from unspoken.channels.storage.files import digest_blake3
from unspoken.channels.storage.side import AuditFile

__all__ = ["AuditRows", "passages", "require_two"]

UNSEEN = 900_001
"""Far from the seeds that bridges are fitted with, which draw from the same generators."""

ENOUGH = 60_000
"""Characters that 24 passages take, and some."""


@dataclass(frozen=True, slots=True)
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

    @classmethod
    def load(
        cls,
        text: Path | None = None,
        qa: Path | None = None,
        recall: Path | None = None,
        choice: Path | None = None,
        *,
        passages: int = 24,
        questions: int = 60,
        records: int = 40,
        choices: int = 100,
        corpus: Corpus | None = None,
        seed: int = 0,
    ) -> "AuditRows":
        """Rows of files; built-in ones of each kind that has no file.

        Args:
            text: Plain text in UTF-8.
            qa: Lines of ``context``, ``question`` and ``answers``.
            recall: Lines of ``records``, ``key`` and ``value``.
            choice: Lines of ``instruction``, a question with its options, and ``answer``.
            passages: How many passages of the text.
            questions: How many questions, drawn from the file.
            records: How many rows of records, drawn from the file.
            choices: How many questions with options, drawn from the file.
            corpus: What the bridge was fitted on: without a file of text, passages come of what it
                holds out.
            seed: Of the draws.

        Raises:
            InputError: A file that cannot be read, or holds other rows; naming file, line and
                field.
        """
        unseen = seed + UNSEEN
        asked = builtin_qa(questions, unseen) if qa is None else draw(read_qa(qa), questions, seed)
        known = (
            builtin_recall(records, unseen)
            if recall is None
            else draw(read_recall(recall), records, seed)
        )
        chosen = (
            builtin_choice(choices, unseen)
            if choice is None
            else draw(read_choice(choice), choices, seed)
        )
        words = _held_out(corpus) if text is None else read_text(text)
        counts = ((text, passages), (qa, len(asked)), (recall, len(known)), (choice, len(chosen)))
        files = tuple(
            AuditFile(name=path.name, digest=digest_blake3(path), rows=count)
            for path, count in counts
            if path is not None
        )
        given = {"text": text, "qa": qa, "recall": recall, "choice": choice}
        brought = frozenset(kind for kind, path in given.items() if path is not None)
        return cls(
            words, tuple(asked), tuple(known), files, brought, passages, choice=tuple(chosen)
        )

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
        made: Mapping[str, Callable[[], list[Sample]]] = {
            "continuation": lambda: passages(
                self.text, receiver, self.passages, self.message, self.continuation
            ),
            "question": lambda: [_question(row) for row in self.qa],
            "recall": lambda: [_records(row) for row in self.recall],
        }
        return made[kind]()


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


def _held_out(corpus: Corpus | None) -> str:
    """Text that no bridge of this corpus was fitted on; failing that, the built-in text."""
    held = "\n\n".join(corpus.held_out) if corpus else ""
    return held if len(held) >= ENOUGH else builtin_text().replace("\f", "\n\n")
