"""Measuring a stored bridge on anybody's files."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from unspoken.agents.machine import describe_machine
from unspoken.channels.bridges.audit import AuditSettings, audit
from unspoken.channels.bridges.auditrows import AuditRows
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.corpus import Corpus, load_corpus
from unspoken.channels.bridges.folder import read, write
from unspoken.channels.bridges.manifest import Audit, BridgeManifest
from unspoken.channels.errors import InputError

if TYPE_CHECKING:
    from unspoken.agents.model import LocalModel

__all__ = ["AuditPlan", "audit_bridge", "corpus_of", "keep_audit"]


@dataclass(frozen=True, slots=True)
class AuditPlan:
    """What an audit measures on, and how much.

    Attributes:
        text: Plain text; None for the built-in one.
        qa: Question-answering rows; None for built-in ones.
        recall: Recall rows; None for built-in ones.
        passages, questions, records: How many rows of each.
        settings: How much else.
    """

    text: Path | None = None
    qa: Path | None = None
    recall: Path | None = None
    passages: int = 24
    questions: int = 60
    records: int = 40
    settings: AuditSettings = field(default_factory=AuditSettings)

    def rows(self, corpus: Corpus) -> AuditRows:
        """The rows.

        Raises:
            InputError: A file that cannot be read.
        """
        return AuditRows.load(
            self.text,
            self.qa,
            self.recall,
            passages=self.passages,
            questions=self.questions,
            records=self.records,
            corpus=corpus,
            seed=self.settings.seed,
        )


def audit_bridge(
    folder: Path,
    sharer: "LocalModel",
    receiver: "LocalModel",
    plan: AuditPlan | None = None,
    *,
    report: Callable[[str, float], None] = lambda stage, fraction: None,
) -> Audit:
    """Measure a stored bridge.

    Args:
        folder: The bridge.
        sharer: Whose cache it reads.
        receiver: Whose cache it makes.
        plan: What to measure on.
        report: Told of stages.

    Raises:
        BridgeError: It is broken.
        IdentityMismatch: It belongs to other models.
        InputError: Rows that cannot be read or measured on.
    """
    plan = plan or AuditPlan()
    bridge = Bridge.load(folder, receiver.device)
    bridge.check(sharer, receiver)
    corpus = corpus_of(bridge.manifest)
    return audit(
        bridge,
        sharer,
        receiver,
        plan.rows(corpus),
        corpus=corpus,
        report=report,
        machine=describe_machine(receiver),
        settings=plan.settings,
    )


def keep_audit(folder: Path, measured: Audit) -> None:
    """Write an audit into a stored bridge's manifest and card.

    Raises:
        BridgeError: The bridge is broken, or its folder cannot be written.
    """
    manifest, tensors = read(folder)
    write(folder, manifest.model_copy(update={"audit": measured}), tensors)


def corpus_of(manifest: BridgeManifest) -> Corpus:
    """What a bridge was fitted on, or the built-in text where that is not at hand."""
    try:
        return load_corpus(manifest.data.sources, seed=manifest.data.seed)
    except InputError:
        return load_corpus(seed=manifest.data.seed)
