"""A bridge's audit in the terminal: bars, tables and figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unspoken.agents.cli.console import print_table, shown
from unspoken.channels.sequences import distinct

if TYPE_CHECKING:
    from unspoken.channels.bridges.manifest import Audit


WIDTH = 40
"""Columns of a bar that keeps all of the text's gain."""

LEFT_OUT = ("text", "none")
"""Conditions whose retention is 1 and 0 by definition."""


def figure_of(value: Any) -> str:
    """A figure for people; a dash where there is none."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) >= 1000 else f"{value:.3f}"
    return "–" if value is None else str(value)


def retention_rows(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Rows with a retention, by data set."""
    by_data: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if isinstance(row.get("retention"), int | float) and row.get("way") not in LEFT_OUT:
            by_data.setdefault(str(row.get("data", "")), []).append(row)
    return by_data


def print_audit(console: Console, audit: "Audit") -> None:
    """Print an audit: bars of what each condition keeps, the tables, the summary, the files."""
    _print_bars(console, audit.rows)
    title = f"Audit of {audit.date.isoformat()}"
    for index, rows in enumerate(_alike(audit.rows)):
        columns = distinct(key for row in rows for key in row)
        cells = [[figure_of(row.get(name)) for name in columns] for row in rows]
        words = [
            place
            for place, name in enumerate(columns)
            if any(isinstance(row.get(name), str) for row in rows)
        ]
        print_table(console, title if index == 0 else "", columns, cells, words)
    figures = dict(audit.summary)
    lines = [[name, figure_of(value)] for name, value in figures.items()]
    print_table(console, "Summary", ["figure", "value"], lines)
    for file in audit.files:
        console.print(shown(f"  {file.name}: {file.rows:,} rows, {file.digest[:16]}"))


def _alike(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Rows in runs of equal columns: those of losses, the task, its figures, times, fuse mode."""
    run: list[Mapping[str, Any]] = []
    for row in rows:
        if run and _shape(row) != _shape(run[-1]):
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def _shape(row: Mapping[str, Any]) -> str:
    data = str(row.get("data"))
    return data if data in ("time", "fuse", "task", "worth") else "losses"


def _print_bars(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    for data, measured in retention_rows(rows).items():
        console.print(Text(f"{data}: kept of the text's gain (│ is all of it)", style="bold"))
        grid = Table.grid(padding=(0, 1))
        for row in measured:
            low, high = row.get("retention_low"), row.get("retention_high")
            between = (
                f"{low:.2f} … {high:.2f}" if isinstance(low, float) and high is not None else ""
            )
            style = "bold cyan" if row["way"] == "bridge" else "dim"
            grid.add_row(
                shown(str(row["way"])),
                Text(_bar(float(row["retention"]), low, high), style=style),
                f"{row['retention']:.2f}",
                between,
            )
        console.print(grid)
        console.print()


def _bar(value: float, low: float | None, high: float | None) -> str:
    """A bar from nothing to all, and its interval as a thin line: ``████████─────│``."""

    def column(share: float) -> int:
        return min(max(round(share * WIDTH), 0), WIDTH)

    cells = [" "] * WIDTH
    cells[: column(value)] = "█" * column(value)
    if low is not None and high is not None:
        for cell in range(column(low), column(high)):
            cells[cell] = "▓" if cell < column(value) else "─"
    return "".join(cells) + "│"
