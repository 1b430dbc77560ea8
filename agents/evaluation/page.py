"""The report as one page of HTML: no scripts, nothing from a network, every word escaped."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from minijinja import Environment

from unspoken.agents.evaluation.summary import ArmSummary, Spread, Summary
from unspoken.agents.evaluation.verdict import Verdict

LEFT, WIDE, STEP = 150, 420, 24
"""Pixels: for the arms' names, for the longest bar, and from one arm to the next."""


def render_page(summary: Summary, *, title: str, facts: Iterable[tuple[str, str]] = ()) -> str:
    """The page of a summary.

    Args:
        summary: The evaluation in figures.
        title: Its heading.
        facts: What was set, as names and values.
    """
    source = files("unspoken.agents.evaluation").joinpath("page.html").read_text(encoding="utf-8")
    # A template's name says how it is escaped.
    environment = Environment(templates={"page.html": source})
    page: str = environment.render_template(
        "page.html",
        title=title,
        facts=[list(fact) for fact in facts],
        design=summary.design.describe(),
        smallest=f"{summary.smallest:.3f}",
        verdicts=[_verdict(verdict) for verdict in summary.verdicts.values()],
        arms=[_row(arm) for arm in summary.arms],
        plots=_plots(summary),
        worst=[_worst(row) for row in map(asdict, summary.worst)],
        worst_arm=summary.worst_arm or "",
    )
    return page


def _verdict(verdict: Verdict) -> dict[str, str]:
    """A verdict's line of the table, as words."""
    return {
        "arm": verdict.arm,
        "words": verdict.words,
        "difference": f"{verdict.difference:+.3f}",
        "interval": f"{verdict.low:+.3f} to {verdict.high:+.3f}",
        "p": "–" if verdict.p is None else f"{verdict.p:.3g}",
        "contexts": str(verdict.contexts),
        "rows": str(verdict.rows),
    }


def _row(arm: ArmSummary) -> dict[str, str]:
    """An arm's line of the table, as words."""
    first, whole = arm.first_token_s, arm.seconds
    return {
        "arm": arm.arm,
        "rows": str(arm.rows),
        "failed": str(arm.failed),
        "fell_back": str(arm.fell_back),
        "score": "–" if arm.score is None else f"{arm.score:.3f}",
        "interval": "–"
        if arm.score_low is None or arm.score_high is None
        else f"{arm.score_low:.3f} to {arm.score_high:.3f}",
        "first": "–" if first is None else f"{first.median:.3f} s",
        "sooner": "–" if arm.sooner is None else f"{arm.sooner:.2f}×",
        "seconds": "–" if whole is None else f"{whole.median:.3f} s",
        "faster": "–" if arm.faster is None else f"{arm.faster:.2f}×",
        "tokens": f"{arm.computed:,.0f} / {arm.reused:,.0f} / {arm.decoded:,.0f}",
        "bytes": _size(arm.carried_bytes),
        "memory": _size(arm.peak_bytes),
    }


def _worst(row: dict[str, Any]) -> dict[str, str]:
    gold = row["gold"]
    said = gold if isinstance(gold, str) else json.dumps(gold, ensure_ascii=False, default=str)
    scores = {name: f"{row[name]:.2f}" for name in ("score", "reference_score")}
    return {**row, "gold": said, **scores}


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.2f} GB"


def _plots(summary: Summary) -> list[dict[str, Any]]:
    arms = summary.arms

    def seconds(value: float) -> str:
        return f"{value:.3g} s"

    return [
        _points(
            "Quality: mean score with its interval",
            [(arm.arm, arm.score, arm.score_low, arm.score_high) for arm in arms],
        ),
        _points(
            "Difference from text with its interval; dashed: the margin",
            [(one.arm, one.difference, one.low, one.high) for one in summary.verdicts.values()],
            marks=(-summary.design.margin, 0.0),
        ),
        _bars(
            "Time to the first token: median and quartiles",
            [(arm.arm, arm.first_token_s) for arm in arms],
            seconds,
        ),
        _bars(
            "Wall-clock: median and quartiles", [(arm.arm, arm.seconds) for arm in arms], seconds
        ),
        _stacks("Tokens of a row: computed, reused, decoded", arms),
        _bars("Bytes of messages, mean of a row", _plain(arms, "carried_bytes"), _size),
        _bars("Memory of states, the most of any row", _plain(arms, "peak_bytes"), _size),
    ]


def _plain(arms: Iterable[ArmSummary], field: str) -> list[tuple[str, Spread | None]]:
    values = [(arm.arm, float(getattr(arm, field))) for arm in arms]
    return [(name, Spread(median=value, low=value, high=value)) for name, value in values]


def _plot(title: str, rows: list[dict[str, Any]], marks: list[dict[str, Any]]) -> dict[str, Any]:
    for number, row in enumerate(rows):
        row["y"] = 12 + STEP * number
    height = STEP * len(rows) + 22
    return {"title": title, "rows": rows, "marks": marks, "height": height, "left": LEFT}


def _points(
    title: str,
    rows: Sequence[tuple[str, float | None, float | None, float | None]],
    marks: tuple[float, ...] = (0.0, 1.0),
) -> dict[str, Any]:
    """Values with their intervals, on a scale that holds them and the marks."""
    known = [value for _, *values in rows for value in values if value is not None]
    least, most = min((*known, *marks)), max((*known, *marks))

    def place(value: float) -> float:
        return round(LEFT + WIDE * (value - least) / (most - least or 1.0), 1)

    drawn = [
        {
            "label": name,
            "point": place(value),
            "low": place(low),
            "high": place(high),
            "text": f"{value:.3f} ({low:.3f} to {high:.3f})",
        }
        for name, value, low, high in rows
        if value is not None and low is not None and high is not None
    ]
    lines = [{"x": place(mark), "text": f"{mark:g}", "dashed": mark < 0} for mark in marks]
    return _plot(title, drawn, lines)


def _bars(
    title: str, rows: Iterable[tuple[str, Spread | None]], words: Callable[[float], str]
) -> dict[str, Any]:
    """Bars from zero, with the quartiles where they differ."""
    known = [(name, spread) for name, spread in rows if spread is not None]
    most = max((spread.high for _, spread in known), default=0.0) or 1.0
    drawn: list[dict[str, Any]] = []
    for name, spread in known:
        places = {"low": spread.low, "high": spread.high}
        ends = {name: round(LEFT + WIDE * value / most, 1) for name, value in places.items()}
        bar = [{"x": LEFT, "width": round(WIDE * spread.median / most, 1), "kind": "bar"}]
        whisker = ends if spread.low < spread.high else {}
        drawn.append({"label": name, "bars": bar, "text": words(spread.median), **whisker})
    return _plot(title, drawn, [])


def _stacks(title: str, arms: Iterable[ArmSummary]) -> dict[str, Any]:
    """Bars of tokens by kind, one after another."""
    kinds = ("computed", "reused", "decoded")
    counts = [(arm.arm, [float(getattr(arm, kind)) for kind in kinds]) for arm in arms]
    most = max((sum(values) for _, values in counts), default=0.0) or 1.0
    drawn: list[dict[str, Any]] = []
    for name, values in counts:
        bars, x = [], float(LEFT)
        for kind, value in zip(kinds, values, strict=True):
            width = WIDE * value / most
            bars.append({"x": round(x, 1), "width": round(width, 1), "kind": kind})
            x += width
        text = " / ".join(f"{value:,.0f}" for value in values)
        drawn.append({"label": name, "bars": bars, "text": text})
    return _plot(title, drawn, [])
