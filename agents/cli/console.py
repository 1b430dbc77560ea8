"""What the commands print with: consoles, tables, numbers and errors."""

import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from unspoken.agents.cli.results import echo, results
from unspoken.channels.errors import RunWaiting, UnspokenError, WorkflowError
from unspoken.channels.sequences import distinct

if TYPE_CHECKING:
    from pydantic import BaseModel


UNSEEN_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""

MOST_LINES = 40
MOST_PROBLEMS = 10
LONGEST_LINE = 1000

_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "\N{REPLACEMENT CHARACTER}")
_CONTROLS |= {ord("\n"): "\n", ord("\t"): "    ", ord("\r"): ""}


class LogLevel(StrEnum):
    """The least that is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def stderr() -> Console:
    """A console for what goes on."""
    return _console(sys.stderr.isatty(), stderr=True)


def stdout() -> Console:
    """A console for results."""
    return _console(results().isatty(), stderr=False)


def _console(terminal: bool, *, stderr: bool) -> Console:
    wide = None if terminal or os.environ.get("COLUMNS") else UNSEEN_WIDTH
    file = None if stderr else results()  # None follows sys.stderr wherever it goes
    return Console(file=file, stderr=stderr, width=wide, markup=False, highlight=False, emoji=False)


def is_live(console: Console) -> bool:
    """Whether a person watches, on a terminal that can be drawn on."""
    return (
        console.is_terminal
        and console.file.isatty()
        and not console.is_dumb_terminal
        and not console.no_color
        and console.encoding.startswith("utf")
    )


def shown(text: str) -> Text:
    """Words of a model or a file, without the control characters that would steer the terminal."""
    return Text(text.translate(_CONTROLS))


def count(tokens: int | None) -> str:
    """A number of tokens, or a dash where it is unknown."""
    return "–" if tokens is None else f"{tokens:,}"


def size(number: int) -> str:
    """Bytes for people."""
    return decimal(number) if number >= 1000 else f"{number} B"


def duration(seconds: float | None) -> str:
    """Seconds for people, or a dash where there are none."""
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Collection[int] = (0,),
) -> None:
    """Print a table; the columns numbered in `words` hold words, the others numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.show_edge, table.padding = False, (0, 1, 0, 0)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index in words else "right")
    for row in rows:
        table.add_row(*map(shown, row))
    if console.measure(table, options=console.options.update(width=1000)).maximum > console.width:
        table.padding = (0, 0, 0, 0)
    console.print(table)
    console.print()


def print_facts(console: Console, facts: Iterable[tuple[str, str]]) -> None:
    """Print a line per name and value."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(shown(name), shown(value))
    console.print(grid)


def print_reasons(console: Console, reasons: Sequence[tuple[str, str]]) -> None:
    """Print each (edge, reason) once."""
    for edge, reason in distinct(reasons):
        text = Text.assemble((f"{edge}: ", "bold"), shown(reason))
        console.print(Padding(text, (0, 0, 0, 2)))


def print_json(data: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print one JSON document on stdout."""
    echo(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def print_stored(folder: Path, manifest: "BaseModel") -> None:
    """Print what a store holds as one JSON document on stdout."""
    print_json({"path": str(folder), **manifest.model_dump(mode="json", by_alias=True)})


def print_error(error: UnspokenError, *, whole: bool = False) -> None:
    """Print an error on stderr, on one screen unless `whole`."""
    lines = str(error).splitlines()
    if isinstance(error, WorkflowError) and not whole:
        lines = "\n".join(map(str, error.problems[:MOST_PROBLEMS])).splitlines()
        more = len(error.problems) - MOST_PROBLEMS
        lines += [f"and {more} more; `unspoken validate` lists all"] if more > 0 else []
    if len(lines) > MOST_LINES and not whole:
        lines = [*lines[: MOST_LINES - 1], f"… ({len(lines) - MOST_LINES + 1} lines more)"]
    text = "\n".join(
        line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} …" for line in lines
    )
    waits = isinstance(error, RunWaiting)
    title = ("paused: ", "bold yellow") if waits else ("error: ", "bold red")
    stderr().print(Text.assemble(title, shown(text)), soft_wrap=True)


def configure_logging(level: LogLevel, console: Console) -> None:
    """Let the project's loggers write to the console, above what is drawn there."""
    import logging

    import structlog

    class Above(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(Text.from_ansi(self.format(record)), soft_wrap=True)

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S.%f", utc=False),
            structlog.dev.ConsoleRenderer(colors=console.is_terminal and not console.no_color),
        ]
    )
    logger = logging.getLogger("unspoken")
    logger.handlers = [Above()]
    logger.setLevel(level.upper())
    logger.propagate = False


def failure(error: str, *, default: bool) -> str:
    """What failed and ended no run, in a sentence."""
    return f"{'the default stands in' if default else 'left out'}: {error}"
