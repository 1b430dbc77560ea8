"""``unspoken run``: run a workflow, and show what goes on and what it cost."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console

from unspoken.agents.cli.console import (
    LogLevel,
    configure_logging,
    is_live,
    print_json,
    stderr,
    stdout,
)
from unspoken.agents.cli.options import Options, require_open, require_talking
from unspoken.agents.cli.progress import load_flow
from unspoken.agents.cli.report_view import (
    failed_run,
    print_outputs,
    print_partial,
    print_prompts,
    print_questions,
    print_report,
    print_summary,
    print_warnings,
)
from unspoken.agents.cli.results import results
from unspoken.channels.errors import InputError, RunError, RunWaiting
from unspoken.channels.sizes import parse_bytes

if TYPE_CHECKING:
    from unspoken.agents.planning.forecast import Forecast
    from unspoken.agents.runtime.events import Event
    from unspoken.agents.spec.spec import WorkflowSpec
    from unspoken.agents.workflow import RunResult, Workflow


Watcher = Callable[["Event"], None]

WorkflowFile = Annotated[Path, typer.Argument(metavar="FILE", help="The workflow file.")]
InputsOption = Annotated[
    list[str] | None,
    typer.Option(
        "-i",
        "--input",
        metavar="NAME=VALUE",
        help="An input; NAME=@FILE reads a file, NAME=@DIR/*.txt a list of files, NAME=@- stdin. "
        "May be repeated, and a list then has one item each time.",
    ),
]
StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store", metavar="DIR", help="The folder of the store of runs; your own if left out."
    ),
]
AnywayOption = Annotated[
    bool,
    typer.Option(
        "--anyway",
        help="Go on with a run that was cancelled, or begun with another version, workflow, model "
        "or input; turns that read something else run again.",
    ),
]
AllowToolsOption = Annotated[
    bool,
    typer.Option("--allow-tools", help="Let the file's tools run, which are programs of its own."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def run(
    file: WorkflowFile,
    inputs: InputsOption = None,
    as_json: JsonOption = False,
    events: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write each event at once, as a line of JSON; - writes them to stdout instead of "
            "the outputs.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Most bytes of states on each device, such as 2GB, in place of the file's memory.",
        ),
    ] = None,
    run_id: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Keep the run under this id. A run of this id that there is goes on where it "
            "was, with the inputs that it was begun with if none are given.",
        ),
    ] = None,
    store: StoreOption = None,
    states: Annotated[
        bool, typer.Option("--states", help="Keep caches too, so that none is computed again.")
    ] = False,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Go on with the conversation of this name, which --store keeps; agents with "
            "memory: session do.",
        ),
    ] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Begin the conversation of --session anew.")
    ] = False,
    anyway: AnywayOption = False,
    allow_tools: AllowToolsOption = False,
    report: Annotated[
        bool, typer.Option("--report", help="Show every turn and message, and what each cost.")
    ] = False,
    show_prompts: Annotated[
        bool, typer.Option("--show-prompts", help="Show what each model read, and what it wrote.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show the outputs alone, and what went wrong.")
    ] = False,
    log_level: Annotated[LogLevel | None, typer.Option(help="Log to stderr.")] = None,
) -> None:
    """Run a workflow.

    What goes on is shown on stderr, and the outputs are printed on stdout. A run that waits for a
    person ends with the exit code 3; `unspoken runs answer` goes on with it.
    """
    from unspoken.agents.spec.loader import load_workflow

    if as_json and events == "-":
        raise InputError(
            "--json and --events - both want stdout",
            expected="one of them there",
            fix="give --events a file",
        )
    most = None if memory is None else _bytes(memory)
    source = load_workflow(file)
    values = _values(source.spec, inputs or [], run_id, store)
    options = Options(
        run_id=run_id, store=store, states=states, anyway=anyway, session=session or "", anew=anew
    )
    require_talking(source.spec, session)
    require_open(source.spec, show_prompts)
    console = stderr()
    if log_level:
        configure_logging(log_level, console)
    with _written_to(events, source.spec) as write:
        flow = load_flow(source, console, quiet=as_json or quiet, fit=True, allow_tools=allow_tools)
        flow.spec = flow.spec.model_copy(update={} if most is None else {"memory": most})
        run_flow(
            flow,
            values,
            options,
            write=write,
            as_json=as_json,
            quiet=as_json or log_level is not None,
            outputs=events != "-",
            report=report,
            prompts=show_prompts,
            alone=quiet,
        )


def _values(
    spec: "WorkflowSpec", words: list[str], run_id: str | None, store: Path | None
) -> dict[str, object]:
    """The inputs given; none where a run goes on with those that it was begun with."""
    from unspoken.agents.spec.input_words import read_inputs
    from unspoken.agents.spec.inputs import ON_COMMAND_LINE, check_inputs

    if run_id is not None and not words:
        from unspoken.agents.runs import RunStore

        if RunStore(store).find(run_id) is not None:
            return {}
    return check_inputs(spec, read_inputs(spec, words), how=ON_COMMAND_LINE)


def run_flow(
    flow: "Workflow",
    values: Mapping[str, object],
    options: Options,
    *,
    write: Watcher = lambda event: None,
    as_json: bool = False,
    quiet: bool = False,
    outputs: bool = True,
    report: bool = False,
    prompts: bool = False,
    alone: bool = False,
) -> None:
    """Run a workflow before a person's eyes, and print what it gave.

    Args:
        flow: The workflow.
        values: Its inputs.
        options: How the run is kept.
        write: Told of every event.
        as_json: Whether one JSON document is printed in place of all else.
        quiet: Whether nothing is shown while it runs, but on a terminal.
        outputs: Whether the outputs are printed.
        report: Whether tables of all turns and messages are.
        prompts: Whether what each model read and wrote is.
        alone: Whether nothing but them is, as long as all goes well.
    """
    console = stderr()
    told = (as_json or report) and not options.session
    forecast = _foretold(flow, values) if told else None
    try:
        result = _watched(flow, values, options, write, console, quiet=quiet, alone=alone)
    except RunError as error:
        if prompts and error.partial is not None:
            print_prompts(console, error.partial.report)
        if as_json:
            print_json(failed_run(error, flow.spec))
        elif isinstance(error, RunWaiting):
            print_questions(console, error.questions)
        else:
            print_partial(console, error, flow.spec)
        raise
    flow.remember(result)
    if prompts:
        print_prompts(console, result.report)
    if as_json:
        data = {} if forecast is None else {"forecast": forecast.to_dict()}
        print_json({**result.to_dict(), **data})
        print_warnings(console, result)
        return
    if outputs:
        print_outputs(stdout(), result.outputs)
    if report:
        console.print()
        print_report(console, result.report)
    if not alone:
        print_summary(console, result.report, forecast)
    print_warnings(console, result)


def _foretold(flow: "Workflow", values: Mapping[str, object]) -> "Forecast | None":
    """What a run is expected to take; None where it is unknown, or would start a server."""
    with suppress(Exception):  # an extra: whatever goes wrong with it, the run goes on
        from unspoken.agents.costs.store import CostStore
        from unspoken.agents.execution import starts_servers

        paces = (flow.costs or CostStore()).root.glob("pace-*.json")
        if starts_servers(flow.spec) or not any(paces):
            return None
        return flow.plan(values).forecast
    return None


def _bytes(memory: str) -> int:
    try:
        return parse_bytes(memory)
    except ValueError as error:
        raise InputError(
            f"--memory is {memory!r}", expected="a size such as 800MB, 2GB or 1.5GiB"
        ) from error


def _watched(
    flow: "Workflow",
    values: Mapping[str, object],
    options: Options,
    write: Watcher,
    console: Console,
    *,
    quiet: bool,
    alone: bool,
) -> "RunResult":
    import anyio

    from unspoken.agents.cli.run_view import LiveView, PlainView

    with options.of_run(flow.spec) as more:
        asked = {**more, **values}
        if is_live(console) and not alone:
            with LiveView(console, flow.spec) as live:
                return anyio.run(_follow, flow, asked, (live, write))
        watchers = (write,) if quiet or alone else (PlainView(console), write)
        return anyio.run(_follow, flow, asked, watchers)


async def _follow(
    flow: "Workflow", asked: Mapping[str, Any], watchers: Sequence[Watcher]
) -> "RunResult":
    """Run to the end, telling the watchers of every event.

    Raises:
        RunWaiting: It waits for a person.
    """
    from unspoken.agents.runtime.events import RunFinished, RunPaused
    from unspoken.agents.workflow import RunResult

    finished: RunFinished | None = None
    async with aclosing(flow.stream(**asked)) as events:
        async for event in events:
            for watch in watchers:
                watch(event)
            if isinstance(event, RunPaused):
                raise RunWaiting(event.run_id, event.questions)
            finished = event if isinstance(event, RunFinished) else finished
    if finished is None:
        raise RuntimeError("the run ended without its last event")
    return RunResult(finished.outputs, {}, finished.report)


@contextmanager
def _written_to(target: str | None, spec: "WorkflowSpec") -> Iterator[Watcher]:
    """A watcher that writes events to a file, to stdout for ``-``, or nowhere.

    Args:
        target: Where to.
        spec: The workflow; words of a private one, or of one inside of it, are left out.
    """
    if target is None:
        yield lambda event: None
    elif target == "-":
        yield lambda event: _write(event, results(), spec)
    else:
        try:
            file = Path(target).open("w", encoding="utf-8")  # noqa: SIM115  # closed below
        except OSError as error:
            raise InputError(
                f"the events cannot be written to {target!r}: {error.strerror}",
                expected="a file that can be written",
                fix="check the path; - writes them to stdout",
            ) from error
        with file:
            yield lambda event: _write(event, file, spec)


def _write(event: "Event", file: TextIO, spec: "WorkflowSpec") -> None:
    from unspoken.agents.runtime.event_data import allowed, to_dict

    told = allowed(event, spec)
    if told is None:
        return
    file.write(json.dumps(to_dict(told), ensure_ascii=False) + "\n")
    file.flush()
