"""What the benchmarks of closed forms share: their rows, and one line of figures per form."""

from collections.abc import Mapping
from typing import Any

from unspoken.agents.bench import Files
from unspoken.channels.bridges.audit.controls import MISMATCHED
from unspoken.channels.bridges.audit.rows import AuditRows
from unspoken.channels.bridges.audit.trial import Judged, Trials, Way, judge
from unspoken.channels.bridges.closed import ClosedForms
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.data.text import Corpus
from unspoken.channels.metrics import kept

__all__ = ["judged_rows", "line", "passages_of", "questions_of"]


def passages_of(files: Files, corpus: Corpus, forms: ClosedForms, count: int) -> tuple[Trials, str]:
    """Passages to judge forms on, and the text that they come of."""
    rows = AuditRows.load(files.text, passages=count, questions=0, records=0, corpus=corpus)
    lessons = rows.lessons("continuation", forms.receiver)
    return Trials(lessons, forms.wide, forms.sharer, forms.receiver), rows.text


def questions_of(files: Files, corpus: Corpus, forms: ClosedForms, count: int) -> Trials:
    """Questions to judge forms on."""
    rows = AuditRows.load(None, files.qa, questions=count, records=0, corpus=corpus)
    lessons = rows.lessons("question", forms.receiver)
    return Trials(lessons, forms.wide, forms.sharer, forms.receiver)


def judged_rows(
    trials: Trials,
    forms: ClosedForms,
    variants: Mapping[str, tuple[ProjectorConfig, Projector]],
    more: Mapping[str, tuple[Way, Way]] | None = None,
) -> dict[str, dict[str, Any]]:
    """A line of figures per variant, each held against itself with another example's message.

    Args:
        trials: The rows.
        forms: What the variants were solved from.
        variants: Closed forms by name.
        more: Further ways by name, each with its mismatched one.
    """
    forms.forget()
    pairs = {name: forms.ways(*variant) for name, variant in variants.items()} | dict(more or {})
    ways = {name: own for name, (own, _) in pairs.items()}
    ways |= {f"{name}, {MISMATCHED}": misled for name, (_, misled) in pairs.items()}
    judged = judge(trials, ways)
    return {name: line(judged, name) for name in pairs}


def line(judged: Judged, name: str) -> dict[str, Any]:
    """What a variant keeps, and what its mismatched message does."""
    misled = judged.loss[f"{name}, {MISMATCHED}"]
    found = kept(judged.none, judged.text, judged.loss[name], misled)
    lost = kept(judged.none, judged.text, misled).retention.value
    figures = {
        "retention": found.retention.value,
        "retention_low": found.retention.low,
        "retention_high": found.retention.high,
        "mismatched": lost,
        "specific": found.specific.value,
        "kl": float(judged.kl[name].mean()),
    }
    return {key: None if value is None else round(value, 4) for key, value in figures.items()}
