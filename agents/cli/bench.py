"""``unspoken bench``: benchmarks that anyone can run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from unspoken.agents.cli.console import print_json, print_table, shown, stderr, stdout
from unspoken.agents.cli.preparing import quiet_libraries, reporting
from unspoken.agents.cli.run import JsonOption
from unspoken.channels.errors import InputError

__all__ = ["bench", "listing"]

DEFAULT_MODEL = "embedded:smollm2-135m-instruct"


def listing() -> Mapping[str, str]:
    """What each benchmark measures, by name."""
    from unspoken.agents.bench import BENCHES

    return BENCHES


def _rows(flag: str, what: str) -> Any:
    return typer.Option(flag, metavar="FILE", help=f"{what}, in place of the built-in ones.")


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The benchmark; see below.")],
    text: Annotated[Path | None, _rows("--text", "Plain text to cut passages from")] = None,
    qa: Annotated[Path | None, _rows("--qa", "Question-answering rows")] = None,
    recall: Annotated[Path | None, _rows("--recall", "Recall rows")] = None,
    model: Annotated[
        str, typer.Option(metavar="REF", help="The model to measure.")
    ] = DEFAULT_MODEL,
    as_json: JsonOption = False,
) -> None:
    """Run a benchmark on this machine."""
    from unspoken.agents._problems import listed, suggest

    benches = listing()
    if name not in benches:
        raise InputError(
            f"there is no benchmark {name!r}", expected=listed(benches), fix=suggest(name, benches)
        )
    for file in (text, qa, recall):
        if file is not None and not file.is_file():
            raise InputError(
                f"there is no file {file}", expected="a text file", fix="check the path"
            )
    with reporting(stderr(), f"bench {name}", quiet=as_json) as report:
        from unspoken.agents.bench import run_bench

        quiet_libraries()
        result = run_bench(
            name,
            model=model,
            text=text,
            qa=qa,
            recall=recall,
            progress=lambda line: report(name, line, 0.0),
        )
    if as_json:
        print_json(result)
    else:
        print_result(stdout(), name, result)


def print_result(console: Console, name: str, result: Mapping[str, Any]) -> None:
    """Print a benchmark's machine, rows and summary."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    _print_pairs(console, result["machine"])
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_told(row.get(column)) for column in columns] for row in rows]
    print_table(console, f"Bench {name}", columns, cells)
    _print_pairs(console, result["summary"])


def _print_pairs(console: Console, pairs: object) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    for key, value in pairs.items() if isinstance(pairs, Mapping) else [("machine", pairs)]:
        grid.add_row(shown(str(key)), shown(_told(value)))
    console.print(grid)


def _told(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)
