"""What an evaluation showed."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from unspoken.agents.cli.console import count, duration, print_table, shown, size

if TYPE_CHECKING:
    from unspoken.agents.evaluation.summary import ArmSummary, Summary

MOST_SHOWN = 3
"""Rows on which the plan lost; the page and the JSON have ten."""

_WIDEST = 200


def print_summary(console: Console, summary: "Summary") -> None:
    """Print how good and how dear each arm was, what is shown of it, and where it lost most."""
    columns = ["arm", "score", "interval", "first token", "sooner", "time", "faster"]
    columns += ["computed", "reused", "decoded", "bytes", "memory"]
    print_table(console, "Arms (a row)", columns, [_row(arm) for arm in summary.arms])
    if summary.verdicts:
        rows = [
            [
                verdict.arm,
                f"{verdict.difference:+.3f}",
                f"{verdict.low:+.3f} to {verdict.high:+.3f}",
                "–" if verdict.p is None else f"{verdict.p:.3g}",
                str(verdict.contexts),
                verdict.words,
            ]
            for verdict in summary.verdicts.values()
        ]
        columns = ["arm", "difference", "interval", "McNemar's p", "contexts", "verdict"]
        print_table(console, "Beside text", columns, rows, (0, 5))
        told = f"With the spread as measured, the smallest visible difference is {_least(summary)}."
        console.print(Padding(shown(told), (0, 0, 1, 2)))
    for arm in summary.arms:
        if arm.failed:
            words = f"{arm.arm}: {arm.failed} of {arm.rows} rows failed, and score 0"
            console.print(Text.assemble(("  ! ", "bold yellow"), shown(words)))
    _print_worst(console, summary)


def _least(summary: "Summary") -> str:
    return f"{summary.smallest:.3f}"


def _row(arm: "ArmSummary") -> list[str]:
    bounds = arm.score_low, arm.score_high
    return [
        arm.arm,
        "–" if arm.score is None else f"{arm.score:.3f}",
        "–" if None in bounds else f"{bounds[0]:.3f} to {bounds[1]:.3f}",
        duration(None if arm.first_token_s is None else arm.first_token_s.median),
        "–" if arm.sooner is None else f"{arm.sooner:.2f}x",
        duration(None if arm.seconds is None else arm.seconds.median),
        "–" if arm.faster is None else f"{arm.faster:.2f}x",
        *(count(round(tokens)) for tokens in (arm.computed, arm.reused, arm.decoded)),
        size(round(arm.carried_bytes)),
        size(arm.peak_bytes),
    ]


def _print_worst(console: Console, summary: "Summary") -> None:
    if not summary.worst:
        return
    title = f"Where {summary.worst_arm} lost most to text ({len(summary.worst)} rows known)"
    console.print(Text(title, style="bold"))
    for row in summary.worst[:MOST_SHOWN]:
        lost = f"{row.score:.2f} against {row.reference_score:.2f}"
        console.print(shown(f"  row {row.row}, {lost}; right: {_short(str(row.gold))}"))
        console.print(shown(f"    {row.arm}: {_short(row.answer)}"))
        console.print(shown(f"    text: {_short(row.reference)}"))


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _WIDEST else f"{flat[:_WIDEST]}…"
