"""What an audit's task says: rows per condition, figures with intervals, the worst of the sizes."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from unspoken.channels.bootstrap import Bootstrap, Estimate, share
from unspoken.channels.bridges.audit.contexts import TaskRows
from unspoken.channels.bridges.audit.tables import Row
from unspoken.channels.bridges.audit.task import ALONE, BRIDGE, OTHER, TEXT, WRONG, Measured
from unspoken.channels.bridges.manifest import Figures

KEPT, ADDS, STYLE = "message_kept", "sharer_adds", "style"
TEXT_ADDS, DIFFERENCE = "text_adds", "task_difference"
FIGURES = (KEPT, ADDS, STYLE, TEXT_ADDS, DIFFERENCE)


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
        TEXT_ADDS: _mean(score[TEXT] - score[OTHER], seed),
        DIFFERENCE: _mean(score[BRIDGE] - score[TEXT], seed),
    }
    # Where the right text scores no better than a wrong one, a bridge has nothing to lose.
    gain = figures[TEXT_ADDS].low
    if gain is None or gain <= 0:
        figures[DIFFERENCE] = Estimate(figures[DIFFERENCE].value, None, None)
    if ALONE in loss:
        figures[ADDS] = _share(loss[ALONE] - bridge, other - text, seed)
    return figures


def _share(part: Tensor, whole: Tensor, seed: int) -> Estimate:
    """A ratio of means, of which each context gives both parts."""
    both = torch.stack([part, whole], dim=1).double().cpu().numpy()
    return Bootstrap(both, None, statistic=share, seed=seed).estimate()


def _mean(gaps: Tensor, seed: int) -> Estimate:
    """A mean of differences of scores."""
    return Bootstrap(gaps.double().cpu().numpy(), seed=seed).estimate()


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
        "task_tokens": max((row["size"] for row in rows if row["data"] == "task"), default=None),
        "contexts_from": task.source,
        "passages_left_out": task.shared,
        "fitted_text_compared": "yes" if task.checked else "no",
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _rank(bound: str, sign: int, row: Row) -> float:
    """Less for what is worse."""
    return sign * float(row[bound])
