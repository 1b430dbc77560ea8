"""What the studies of closed forms share: their rows, and one line of figures per form."""

from collections.abc import Mapping
from typing import Any

from closed_forms import ClosedForms
from unspoken.channels.bridges.audit.controls import MISMATCHED
from unspoken.channels.bridges.audit.rows import AuditRows
from unspoken.channels.bridges.audit.trial import Assessment, Condition, Trials, assess
from unspoken.channels.metrics import kept

Conditions = Mapping[str, tuple[Condition, Condition]]
"""By name, a way to hand the message over, and the same with another example's."""


def rows_of(kind: str, rows: AuditRows, forms: ClosedForms) -> Trials:
    """The rows of a kind (``continuation`` or ``question``), made ready to assess forms on."""
    samples = rows.samples(kind, forms.receiver)
    return Trials(samples, forms.wide, forms.sharer, forms.receiver)


def assessed_rows(trials: Trials, conditions: Conditions) -> dict[str, dict[str, Any]]:
    """A line of figures per condition."""
    makers = {name: bridge for name, (bridge, _) in conditions.items()}
    makers |= {f"{name}, {MISMATCHED}": misled for name, (_, misled) in conditions.items()}
    assessment = assess(trials, makers)
    return {name: _line(assessment, name) for name in conditions}


def _line(assessment: Assessment, name: str) -> dict[str, Any]:
    """What a variant keeps, and what its mismatched message does."""
    mismatched = assessment.loss[f"{name}, {MISMATCHED}"]
    share = kept(assessment.none, assessment.text, assessment.loss[name], mismatched)
    figures = {
        "retention": share.retention.value,
        "retention_low": share.retention.low,
        "retention_high": share.retention.high,
        "mismatched": kept(assessment.none, assessment.text, mismatched).retention.value,
        "specific": share.specific.value,
        "kl": float(assessment.kl[name].mean()),
    }
    return {key: None if value is None else round(value, 4) for key, value in figures.items()}
