"""``unspoken bench``: benchmarks that anyone can run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from unspoken.agents.bench import DEFAULT_MODEL, DEFAULT_SHARER
from unspoken.agents.cli.console import print_json, print_table, shown, stderr, stdout
from unspoken.agents.cli.progress import quiet_libraries, reporting
from unspoken.agents.cli.run import JsonOption
from unspoken.channels.errors import InputError

__all__ = ["bench", "listing", "print_result"]


def listing() -> Mapping[str, str]:
    """What each benchmark measures, by name."""
    from unspoken.agents.bench import BENCHES

    return BENCHES


def _rows(flag: str, what: str) -> Any:
    return typer.Option(flag, metavar="FILE", help=f"{what}, in place of the built-in ones.")


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The benchmark; see below.")],
    sharer: Annotated[
        str | None,
        typer.Argument(
            metavar="SHARER",
            help=f"The model whose cache is read, where two are measured; {DEFAULT_SHARER} if left "
            "out.",
        ),
    ] = None,
    receiver: Annotated[
        str | None,
        typer.Argument(
            metavar="RECEIVER", help=f"The model whose cache is made; {DEFAULT_MODEL} if left out."
        ),
    ] = None,
    text: Annotated[Path | None, _rows("--text", "Plain text to cut passages from")] = None,
    qa: Annotated[Path | None, _rows("--qa", "Question-answering rows")] = None,
    recall: Annotated[Path | None, _rows("--recall", "Recall rows")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help=f"The model, where one is measured; {DEFAULT_MODEL} if left out.",
        ),
    ] = None,
    bridge: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The bridge; your store's if left out.")
    ] = None,
    refit: Annotated[bool, typer.Option("--refit", help="Fit the bridge again first.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a benchmark on this machine."""
    from unspoken.agents.bench import check_name, run_bench

    check_name(name)
    for file in (text, qa, recall):
        if file is not None and not file.is_file():
            raise InputError(
                f"there is no file {file}", expected="a text file", fix="check the path"
            )
    ends = _ends(name, sharer, receiver, model)
    with reporting(stderr(), f"bench {name}", quiet=as_json) as report:
        quiet_libraries()
        result = run_bench(
            name,
            sharer=ends[0],
            model=ends[1],
            text=text,
            qa=qa,
            recall=recall,
            bridge=bridge,
            refit=refit,
            progress=lambda line: report(name, line, 0.0),
        )
    if as_json:
        print_json(result)
    else:
        print_result(stdout(), f"Bench {name}", result)


def _ends(
    name: str, sharer: str | None, receiver: str | None, model: str | None
) -> tuple[str, str]:
    """The sharer and the receiver of a benchmark of two models; the second alone counts for one."""
    from unspoken.agents.bench import PAIRED

    if name not in PAIRED:
        if sharer is not None:
            raise InputError(
                f"the benchmark {name} measures one model, and {sharer} stands after its name",
                expected=f"unspoken bench {name} --model {sharer}",
                fix="name the model with --model",
            )
        return DEFAULT_SHARER, model or DEFAULT_MODEL
    if model is not None or (sharer is None) != (receiver is None):
        raise InputError(
            f"the benchmark {name} measures two models, and one was named",
            expected=f"unspoken bench {name} SHARER RECEIVER, or neither",
            fix=f"unspoken bench {name} {sharer or DEFAULT_SHARER} "
            f"{receiver or model or DEFAULT_MODEL}",
        )
    return sharer or DEFAULT_SHARER, receiver or DEFAULT_MODEL


def print_result(console: Console, title: str, result: Mapping[str, Any]) -> None:
    """Print the machine, rows and summary of a benchmark or a study."""
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    _print_pairs(console, result["machine"])
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_told(row.get(column)) for column in columns] for row in rows]
    print_table(console, title, columns, cells)
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
