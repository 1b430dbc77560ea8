"""What the studies of closed forms share: their rows, and one line of figures per form."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from closed_forms import ClosedForms
from unspoken.channels.bridges.audit.controls import MISMATCHED
from unspoken.channels.bridges.audit.plan import AuditPlan
from unspoken.channels.bridges.audit.trial import Condition, Judged, Trials, judge
from unspoken.channels.data.text import Corpus
from unspoken.channels.metrics import kept

__all__ = ["judged_rows", "line", "passages_of", "questions_of"]


def passages_of(
    file: Path | None, corpus: Corpus, forms: ClosedForms, count: int
) -> tuple[Trials, str]:
    """Passages to judge forms on, and the text that they come of."""
    rows = AuditPlan(text=file, passages=count, questions=0, records=0).rows(corpus)
    samples = rows.samples("continuation", forms.receiver)
    return Trials(samples, forms.wide, forms.sharer, forms.receiver), rows.text


def questions_of(file: Path, corpus: Corpus, forms: ClosedForms, count: int) -> Trials:
    """Questions to judge forms on."""
    rows = AuditPlan(qa=file, questions=count, records=0).rows(corpus)
    samples = rows.samples("question", forms.receiver)
    return Trials(samples, forms.wide, forms.sharer, forms.receiver)


def judged_rows(
    trials: Trials, conditions: Mapping[str, tuple[Condition, Condition]]
) -> dict[str, dict[str, Any]]:
    """A line of figures per condition.

    Args:
        trials: The rows.
        conditions: By name, a way to hand the message over, and the same with another example's.
    """
    ways = {name: way for name, (way, _) in conditions.items()}
    ways |= {f"{name}, {MISMATCHED}": misled for name, (_, misled) in conditions.items()}
    judged = judge(trials, ways)
    return {name: line(judged, name) for name in conditions}


def line(judged: Judged, name: str) -> dict[str, Any]:
    """What a variant keeps, and what its mismatched message does."""
    mismatched = judged.loss[f"{name}, {MISMATCHED}"]
    share = kept(judged.none, judged.text, judged.loss[name], mismatched)
    figures = {
        "retention": share.retention.value,
        "retention_low": share.retention.low,
        "retention_high": share.retention.high,
        "mismatched": kept(judged.none, judged.text, mismatched).retention.value,
        "specific": share.specific.value,
        "kl": float(judged.kl[name].mean()),
    }
    return {key: None if value is None else round(value, 4) for key, value in figures.items()}
