"""``unspoken eval``: a workflow over rows, under several arms."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from unspoken.agents.cli.console import (
    count,
    duration,
    is_live,
    print_facts,
    print_json,
    print_table,
    shown,
    size,
    stderr,
    stdout,
)
from unspoken.agents.cli.progress import load_flow
from unspoken.agents.cli.run import AllowToolsOption, InputsOption, JsonOption, WorkflowFile
from unspoken.channels.errors import InputError
from unspoken.channels.storage.files import replace_file

if TYPE_CHECKING:
    from unspoken.agents.evaluation.setting import Beforehand, Progress
    from unspoken.agents.evaluation.summary import ArmSummary, Summary


MOST_SHOWN = 3
"""Rows on which the plan lost; the page and the JSON have ten."""

_WIDEST = 200


def _column(flag: str, what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(flag, metavar="COLUMN", help=what)
    return option


def eval_(
    file: WorkflowFile,
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", help="The rows: one JSON object a line.")
    ],
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="COLUMN=inputs.NAME",
            help="The column of an input; without it, the column of the input's name. A dot leads "
            "into an object. May be repeated.",
        ),
    ] = None,
    inputs: InputsOption = None,
    gold: Annotated[
        str, typer.Option(metavar="COLUMN", help="What is right: a value, or a list of them.")
    ] = "gold",
    context: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Rows that are equal in it are of one context; context if left out, where all "
            "rows have it.",
        ),
    ] = None,
    name: Annotated[
        str | None, _column("--id", "A name for each row; id if left out, else its number.")
    ] = None,
    topic: Annotated[
        str | None, _column("--topic", "What a row is about, for the control neighbour.")
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Whose answers count; the last agent if left out."),
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Arms and controls, with commas between: text, text+reuse, plan, continuation, "
            "splice, recompute, bridge, equal_time, alone; stranger, neighbour, none, "
            "everything_stranger, again. Without: text, text+reuse, plan, alone, stranger.",
        ),
    ] = None,
    score: Annotated[
        str,
        typer.Option(
            metavar="SCORER",
            help="How answers are scored: exact, f1, choice, "
            "likelihood, numeric, regex, fields, judge:MODEL or module:function.",
        ),
    ] = "exact",
    margin: Annotated[
        float, typer.Option(help="How much worse an arm may score and still count as no worse.")
    ] = 0.05,
    alpha: Annotated[
        float, typer.Option(help="How often chance alone may pass for a difference, over all arms.")
    ] = 0.05,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="So many rows, drawn at random.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of all that is drawn.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where every outcome is written down. The same command goes on from there.",
        ),
    ] = None,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="Run all rows, even where a part settles every arm.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as one page, too.")
    ] = None,
    allow_tools: AllowToolsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare ways to hand messages over, by the answers of a workflow over rows.

    Every row runs under every arm, with the same agents and prompts. What was set is printed before
    the first row runs: rows, contexts, arms, the margin, and the smallest difference that so many
    contexts can show.
    """
    from unspoken.agents.evaluation.arms import check_names
    from unspoken.agents.evaluation.evaluation import evaluate
    from unspoken.agents.evaluation.rows import Columns, make_rows, read_mapping, read_rows
    from unspoken.agents.spec.input_words import read_inputs
    from unspoken.agents.spec.loader import load_workflow

    source, rows = load_workflow(file), read_rows(data)
    fixed = read_inputs(source.spec, inputs or [])
    names = check_names([one.strip() for one in arms.split(",")]) if arms else None
    if html is not None and not html.absolute().parent.is_dir():
        raise InputError(
            f"the page cannot be written to {str(html)!r}: there is no such folder",
            expected="a file in a folder that is there",
            fix="make the folder first",
        )
    columns = Columns(
        inputs=read_mapping(mapping or []), gold=gold, context=context, id=name, topic=topic
    )
    make_rows(source.spec, rows, columns, fixed)  # refuses what does not fit, before models load
    console = stderr()
    flow = load_flow(source, console, quiet=as_json, fit=True, allow_tools=allow_tools)
    with _showing(console, quiet=as_json) as tell:
        evaluation = evaluate(
            flow,
            rows,
            columns=columns,
            inputs=fixed,
            agent=agent,
            arms=names,
            score=score,
            margin=margin,
            alpha=alpha,
            limit=limit,
            seed=seed,
            out=out,
            all_rows=all_rows,
            begin=lambda beforehand: _print_beforehand(console, beforehand),
            tell=tell,
        )
    if as_json:
        print_json(evaluation.to_dict())
    else:
        print_summary(stdout(), evaluation.summary)
    if html is not None:
        page = evaluation.page()
        replace_file(html.absolute(), lambda path: path.write_text(page, encoding="utf-8"))


def _print_beforehand(console: Console, told: "Beforehand") -> None:
    print_facts(console, told.facts())


@contextmanager
def _showing(console: Console, *, quiet: bool) -> Iterator[Callable[["Progress"], None]]:
    """Show how far it is: a bar on a terminal, elsewhere how long it will take, once."""
    if is_live(console):
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
        with Bars(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
            task = bars.add_task("rows", total=None)

            def drawn(told: "Progress") -> None:
                words = f"{told.arm}, {_left(told)}" if told.seconds_left else told.arm
                bars.update(task, description=words, completed=told.done, total=told.total)

            yield drawn
        return
    said = quiet

    def once(told: "Progress") -> None:
        nonlocal said
        if not said and told.seconds_left is not None:
            console.print(shown(f"{told.done} of {told.total} outcomes, {_left(told)}"))
            said = True

    yield once


def _left(told: "Progress") -> str:
    seconds = told.seconds_left or 0.0
    return (
        f"about {duration(seconds)} left" if seconds < 90 else f"about {seconds / 60:.0f} min left"
    )


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
        rows += [
            [
                arm.arm,
                f"{arm.difference:+.3f}",
                f"{arm.difference_low:+.3f} to {arm.difference_high:+.3f}",
                *("–", "–", "a control: nothing is claimed"),
            ]
            for arm in summary.arms
            if arm.difference is not None and arm.arm not in summary.verdicts
        ]
        columns = ["arm", "difference", "interval", "McNemar's p", "contexts", "verdict"]
        print_table(console, "Beside text", columns, rows, (0, 5))
        told = f"With the spread as measured, the smallest visible difference is {_least(summary)}."
        console.print(Padding(shown(told), (0, 0, 1, 2)))
    for arm in summary.arms:
        beside = arm.sooner_than_reuse, arm.faster_than_reuse
        if arm.arm in summary.verdicts and arm.arm != "text+reuse" and None not in beside:
            words = (
                f"{arm.arm}, beside text+reuse: {beside[0]:.2f}x sooner, {beside[1]:.2f}x faster"
            )
            console.print(Padding(shown(words), (0, 0, 0, 2)))
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
