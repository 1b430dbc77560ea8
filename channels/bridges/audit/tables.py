"""An audit's losses as a table: a row per data set and way."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from unspoken.channels.bridges.audit.controls import MISMATCHED
from unspoken.channels.bridges.audit.trial import Judged
from unspoken.channels.metrics import Kept, kept

__all__ = ["NONE", "TEXT", "Row", "figures", "mean", "table"]

TEXT, NONE = "text", "none"
Row = dict[str, Any]


def table(
    data: str, judged: Judged, *, seed: int = 0, more: Mapping[str, Row] | None = None
) -> list[Row]:
    """A row per way: losses, what it keeps with its intervals, distance to the full text, and what
    `more` adds.

    Args:
        data: Name of the data set.
        judged: Losses by way; specific figures need that of another example's message.
        seed: Of the bootstrap.
        more: Further figures, by way.
    """
    misled = judged.loss.get(MISMATCHED)
    losses = {TEXT: judged.text, NONE: judged.none, **judged.loss}
    rows = []
    for way, loss in losses.items():
        found = kept(judged.none, judged.text, loss, misled, seed=seed)
        rows.append(
            {"data": data, "way": way, "rows": len(loss), "loss": _round(float(loss.mean()))}
            | _told(found)
            | {
                "kl": _round(float(judged.kl[way].mean())) if way in judged.kl else None,
                "top1": _round(float(judged.top1[way].mean())) if way in judged.top1 else None,
            }
            | dict((more or {}).get(way, {}))
        )
    return rows


def _told(found: Kept) -> Row:
    """Both estimates as columns."""
    columns: Row = {}
    for name, one in (("retention", found.retention), ("specific", found.specific)):
        columns |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    return {name: _round(value) for name, value in columns.items()}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def figures(rows: Sequence[Row], data: str, way: str) -> Row:
    """The row of a data set and a way."""
    return next(row for row in rows if row["data"] == data and row.get("way") == way)


def mean(values: Sequence[float]) -> float:
    """The mean, as tables show it."""
    return round(fmean(values), 4)
