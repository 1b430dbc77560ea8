"""An audit's losses as a table: a row per data set and condition."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from unspoken.channels.bridges.audit.controls import MISMATCHED
from unspoken.channels.bridges.audit.trial import Assessment
from unspoken.channels.metrics import Kept, kept

__all__ = ["NONE", "TEXT", "Row", "figures", "mean", "table"]

TEXT, NONE = "text", "none"
Row = dict[str, Any]


def table(
    data: str, assessment: Assessment, *, seed: int = 0, more: Mapping[str, Row] | None = None
) -> list[Row]:
    """A row per condition: losses, what it keeps, distance to the full text, and what `more` adds.

    Args:
        data: Name of the data set.
        assessment: Losses by condition; specific figures need that of another example's message.
        seed: Of the bootstrap.
        more: Further figures, by condition.
    """
    misled = assessment.loss.get(MISMATCHED)
    losses = {TEXT: assessment.text, NONE: assessment.none, **assessment.loss}
    rows = []
    for condition, loss in losses.items():
        row = {"data": data, "way": condition, "rows": len(loss), "loss": _round(loss.mean())}
        row |= _estimates(kept(assessment.none, assessment.text, loss, misled, seed=seed))
        for name, values in (("kl", assessment.kl), ("top1", assessment.top1)):
            row[name] = _round(values[condition].mean()) if condition in values else None
        rows.append(row | dict((more or {}).get(condition, {})))
    return rows


def _estimates(both: Kept) -> Row:
    """Both estimates as columns."""
    columns: Row = {}
    for name, estimate in (("retention", both.retention), ("specific", both.specific)):
        columns |= {
            name: estimate.value,
            f"{name}_low": estimate.low,
            f"{name}_high": estimate.high,
        }
    return {name: _round(value) for name, value in columns.items()}


def _round(value: Tensor | float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def figures(rows: Sequence[Row], data: str, condition: str) -> Row:
    """The row of a data set and a condition."""
    return next(row for row in rows if row["data"] == data and row.get("way") == condition)


def mean(values: Sequence[float]) -> float:
    """The mean, as tables show it."""
    return round(fmean(values), 4)
