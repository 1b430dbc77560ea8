"""``unspoken bench``: benchmarks that anyone can run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from unspoken.agents.bench import (
    ALONE,
    DEFAULT_MODEL,
    DEFAULT_SHARER,
    PAIRED,
    check_name,
    forecast,
    run_bench,
    sized,
)
from unspoken.agents.cli.console import print_facts, print_json, print_table, stderr, stdout
from unspoken.agents.cli.progress import quiet_libraries, reporting
from unspoken.agents.cli.run import JsonOption
from unspoken.channels.errors import InputError
from unspoken.channels.sequences import distinct


def _rows(flag: str, what: str) -> Any:
    return typer.Option(flag, metavar="FILE", help=f"{what}, in place of the built-in ones.")


RowsOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="How much to measure: passages, rounds, runs; it is said beforehand."
    ),
]
QuickOption = Annotated[bool, typer.Option("--quick", help="Measure little, to see how it works.")]
OnlyOption = Annotated[
    list[str] | None, typer.Option(metavar="PART", help="Measure this part alone. May be repeated.")
]


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
            metavar="REF", help=f"The model, where one is measured; {DEFAULT_MODEL} if left out."
        ),
    ] = None,
    bridge: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The bridge; your store's if left out.")
    ] = None,
    refit: Annotated[bool, typer.Option("--refit", help="Fit the bridge again first.")] = False,
    environments: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where other engines are installed; .peers if left out."),
    ] = None,
    rows: RowsOption = None,
    quick: QuickOption = False,
    only: OnlyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a benchmark on this machine."""
    check_name(name)
    sharer, receiver = _models(name, sharer, receiver, model)
    size = sized(name, count=rows, quick=quick, only=only or ())
    if ahead := forecast(name, size):
        stderr().print(f"bench {name}: {ahead}", soft_wrap=True, highlight=False)
    with reporting(stderr(), f"bench {name}", quiet=as_json) as report:
        quiet_libraries()
        result = run_bench(
            name,
            sharer=sharer,
            model=receiver,
            text=text,
            qa=qa,
            recall=recall,
            bridge=bridge,
            refit=refit,
            environments=environments,
            count=rows,
            quick=quick,
            only=only or (),
            progress=lambda line: report(name, line, 0.0),
        )
    print_result(f"Bench {name}", result, as_json=as_json)


def _models(
    name: str, sharer: str | None, receiver: str | None, model: str | None
) -> tuple[str, str]:
    """The sharer and the receiver of a benchmark of two models; the second alone counts for one."""
    if name in ALONE and (model or sharer or receiver):
        raise InputError(
            f"the benchmark {name} measures no model, and one was named",
            expected=f"unspoken bench {name}",
            fix="leave the model out",
        )
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


def print_result(title: str, result: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the machine, rows and summary of a benchmark or a study."""
    if as_json:
        print_json(result)
        return
    console = stdout()
    rows: Sequence[Mapping[str, Any]] = result["rows"]
    print_facts(console, _pairs(result["machine"]))
    columns = distinct(key for row in rows for key in row)
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    print_table(console, title, columns, cells)
    print_facts(console, _pairs(result["summary"]))


def _pairs(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    return ((name, _cell(value)) for name, value in figures.items())


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)
