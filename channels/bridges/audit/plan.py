"""What an audit measures on, and how much."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from unspoken.channels.bridges.audit.contexts import TaskRows
from unspoken.channels.bridges.audit.rows import AuditRows
from unspoken.channels.bridges.audit.timing import SIZES
from unspoken.channels.bridges.bounds import DRAWN
from unspoken.channels.data.builtin import builtin_text
from unspoken.channels.data.rows import (
    QaRow,
    builtin_choice,
    builtin_recall,
    read_choice,
    read_qa,
    read_recall,
    sample,
    unseen_contexts,
)
from unspoken.channels.data.sources import read_text
from unspoken.channels.data.text import Corpus
from unspoken.channels.storage.files import digest_blake3
from unspoken.channels.storage.side import AuditFile

Row = TypeVar("Row")

UNSEEN = 900_001
"""Far from the seeds that bridges are fitted with, which draw from the same generators."""

ENOUGH = 60_000
"""Characters that 24 passages take, and some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings:
    """How much an audit measures.

    Attributes:
        task: Tokens of the messages that the task is measured at.
        asked: Most questions about one context of the task.
        tokens: Tokens that the two refitted controls are solved from; None for six times the
            columns of their features, and 12,000 at least.
        answered: Questions that are also answered in words, for F1.
        written: Most tokens of such an answer, and of an answer to the task.
        sizes: Tokens of the messages that are timed.
        repeats: How often each is timed.
        seed: Of all that is drawn.
    """

    task: tuple[int, ...] = (256, 1024)
    asked: int = 2
    tokens: int | None = None
    answered: int = 20
    written: int = 16
    sizes: tuple[int, ...] = SIZES
    repeats: int = 7
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """What an audit measures on, and how much.

    Attributes:
        text: Plain text in UTF-8; None for the built-in one, as for all files.
        qa: Lines of ``context``, ``question`` and ``answers``.
        recall: Lines of ``records``, ``key`` and ``value``.
        choice: Lines of ``instruction``, a question with its options, and ``answer``, for a bridge
            with fuse mode.
        passages, questions, records, choices: How many rows of each, drawn from the files.
        contexts: Most contexts of the task; with fewer than 100 it shows nothing for certain.
        settings: How much else.
    """

    text: Path | None = None
    qa: Path | None = None
    recall: Path | None = None
    choice: Path | None = None
    passages: int = 24
    questions: int = 60
    records: int = 40
    choices: int = 100
    contexts: int = DRAWN
    settings: AuditSettings = field(default_factory=AuditSettings)

    def rows(
        self, corpus: Corpus | None = None, *, fitted: bool = False, fit_seed: int = 0
    ) -> AuditRows:
        """The rows; without a file of text, passages come of what the bridge's corpus holds out.

        Args:
            corpus: What the bridge was fitted on, or the built-in text.
            fitted: Whether this is the very text that it was fitted on.
            fit_seed: The fit's seed.

        Raises:
            InputError: A file that cannot be read, or holds other rows; naming file, line and
                field.
        """
        seed = self.settings.seed
        qa = _drawn(self.qa, read_qa, _unseen_qa, self.questions, seed)
        recall = _drawn(self.recall, read_recall, builtin_recall, self.records, seed)
        choice = _drawn(self.choice, read_choice, builtin_choice, self.choices, seed)
        given = {
            "text": (self.text, self.passages),
            "qa": (self.qa, len(qa)),
            "recall": (self.recall, len(recall)),
            "choice": (self.choice, len(choice)),
        }
        files = {
            kind: AuditFile(name=path.name, digest=digest_blake3(path), rows=count)
            for kind, (path, count) in given.items()
            if path is not None
        }
        return AuditRows(
            text=_validation_text(corpus) if self.text is None else read_text(self.text),
            qa=qa,
            recall=recall,
            choice=choice,
            files=tuple(files.values()),
            brought=frozenset(files),
            passages=self.passages,
            contexts=self.contexts,
            task=self._task(corpus, fitted, fit_seed),
        )

    def _task(self, corpus: Corpus | None, fitted: bool, fit_seed: int) -> TaskRows:
        """All questions of a file, or built-in ones, whose passages were not fitted on."""
        rows, source = [], "built-in"
        if self.qa is not None:
            rows, source = read_qa(self.qa), self.qa.name
        elif self.settings.task:
            rows = unseen_contexts(4 * self.contexts, self.settings.seed + UNSEEN)
        return TaskRows.of(rows, corpus, source=source, checked=fitted, seed=fit_seed)


def _drawn(
    path: Path | None,
    read: Callable[[Path], Sequence[Row]],
    builtin: Callable[[int, int], Sequence[Row]],
    count: int,
    seed: int,
) -> tuple[Row, ...]:
    """Rows of a file, or built-in ones."""
    return tuple(builtin(count, seed + UNSEEN) if path is None else sample(read(path), count, seed))


def _unseen_qa(count: int, seed: int) -> list[QaRow]:
    """One built-in question per passage."""
    by_passage = {row.context: row for row in unseen_contexts(count, seed)}
    return list(by_passage.values())


def _validation_text(corpus: Corpus | None) -> str:
    """Text that no bridge of this corpus was fitted on; failing that, the built-in text."""
    held = "\n\n".join(corpus.validation) if corpus else ""
    return held if len(held) >= ENOUGH else builtin_text().replace("\f", "\n\n")
