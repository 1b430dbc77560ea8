"""What an audit's task says: rows per condition, figures with intervals, the worst of the sizes."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from unspoken.channels.bootstrap import Estimate, bca, share
from unspoken.channels.bridges.audit.contexts import TaskRows
from unspoken.channels.bridges.audit.tables import Row
from unspoken.channels.bridges.audit.task import ALONE, BRIDGE, OTHER, TEXT, WRONG, Measured
from unspoken.channels.bridges.manifest import Figures

KEPT, ADDS, STYLE, DIFFERENCE = "message_kept", "sharer_adds", "style", "task_difference"
FIGURES = (KEPT, ADDS, STYLE, DIFFERENCE)


def worth(measured: Measured, *, seed: int = 0) -> dict[str, Estimate]:
    """The figures of one size by name; what was not measured is left out.

    Args:
        measured: Losses and scores per context.
        seed: Of the bootstrap, whose unit is the context.
    """
    loss, score = measured.loss, measured.score
    text, other, bridge, wrong = (loss[name] for name in (TEXT, OTHER, BRIDGE, WRONG))
    figures = {
        KEPT: _share(other - bridge, other - text, seed),
        STYLE: _share(other - wrong, other - text, seed),
        DIFFERENCE: bca((score[BRIDGE] - score[TEXT])[:, None], _first, seed=seed),
    }
    if ALONE in loss:
        figures[ADDS] = _share(loss[ALONE] - bridge, other - text, seed)
    return figures


def _share(part: Tensor, whole: Tensor, seed: int) -> Estimate:
    """A ratio of means, of which each context gives both parts."""
    both = torch.stack([part, whole], dim=1)
    return bca(both, _ratio, seed=seed)


def _ratio(means: Tensor) -> Tensor:
    return share(means[..., 0], means[..., 1])


def _first(means: Tensor) -> Tensor:
    return means[..., 0]


def task_table(every: Sequence[Measured], *, seed: int = 0) -> list[Row]:
    """Rows of losses and scores per size and condition, then rows of figures per size."""
    rows: list[Row] = []
    for measured in every:
        for name, losses in measured.loss.items():
            scores = measured.score.get(name)
            rows.append(
                {
                    "data": "task",
                    "size": measured.size,
                    "tokens": round(measured.tokens),
                    "way": name,
                    "contexts": len(losses),
                    "rows": measured.questions,
                    "loss": round(float(losses.mean()), 4),
                    "f1": None if scores is None else round(float(scores.mean()), 4),
                }
            )
    for measured in every:
        for name, estimate in worth(measured, seed=seed).items():
            row = {"data": "worth", "size": measured.size, "figure": name}
            ends = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
            rows.append(row | {key: _rounded(end) for key, end in ends.items()})
    return rows


def task_summary(rows: Sequence[Row], task: TaskRows) -> Figures:
    """The figures that an edge is held to: of each the worst of the sizes.

    Args:
        rows: As `task_table` gives them.
        task: What was asked.
    """
    summary: Figures = dict.fromkeys(
        f"{name}{end}" for name in FIGURES for end in ("", "_low", "_high")
    )
    for name in FIGURES:
        these = [row for row in rows if row.get("figure") == name]
        if not these:
            continue
        bound = "high" if name == STYLE else "low"
        sign = -1 if name == STYLE else 1
        unknown = [row for row in these if row[bound] is None]
        worst = unknown[0] if unknown else min(these, key=partial(_rank, bound, sign))
        summary |= {name: worst["value"], f"{name}_low": worst["low"]}
        summary |= {f"{name}_high": worst["high"]}
    counts = [row["contexts"] for row in rows if row["data"] == "task"]
    return summary | {
        "contexts": min(counts, default=0),
        "contexts_from": task.source,
        "passages_left_out": task.shared,
        "fitted_text_compared": "yes" if task.checked else "no",
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _rank(bound: str, sign: int, row: Row) -> float:
    """Less for what is worse."""
    return sign * float(row[bound])
