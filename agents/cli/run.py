"""``unspoken run``: run a workflow, and show what goes on and what it cost."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
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
from unspoken.agents.cli.progress import load_flow
from unspoken.agents.cli.report_view import (
    failed_run,
    print_outputs,
    print_partial,
    print_report,
    print_warnings,
)
from unspoken.agents.cli.results import results
from unspoken.channels.errors import InputError, RunError
from unspoken.channels.sizes import parse_bytes

if TYPE_CHECKING:
    from unspoken.agents.runtime.events import Event
    from unspoken.agents.workflow import RunResult, Workflow


Watcher = Callable[["Event"], None]

WorkflowFile = Annotated[Path, typer.Argument(metavar="FILE", help="The workflow file.")]
InputsOption = Annotated[
    list[str] | None,
    typer.Option(
        "-i",
        "--input",
        metavar="NAME=VALUE",
        help="An input; NAME=@FILE reads it from a file. May be repeated.",
    ),
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
    log_level: Annotated[LogLevel | None, typer.Option(help="Log to stderr.")] = None,
) -> None:
    """Run a workflow.

    What goes on is shown on stderr, and the outputs are printed on stdout.
    """
    from unspoken.agents.spec.inputs import ON_COMMAND_LINE, check_inputs, read_inputs
    from unspoken.agents.spec.loader import load_workflow

    if as_json and events == "-":
        raise InputError(
            "--json and --events - both want stdout",
            expected="one of them there",
            fix="give --events a file",
        )
    most = None if memory is None else _bytes(memory)
    source = load_workflow(file)
    given = read_inputs(source.spec, inputs or [])
    values = check_inputs(source.spec, given, how=ON_COMMAND_LINE)
    console = stderr()
    if log_level:
        configure_logging(log_level, console)
    with _written_to(events) as write:
        flow = load_flow(source, console, quiet=as_json, fit=True)
        flow.spec = flow.spec.model_copy(update={} if most is None else {"memory": most})
        try:
            result = _watched(flow, values, write, console, quiet=as_json or log_level is not None)
        except RunError as error:
            if as_json:
                print_json(failed_run(error))
            else:
                print_partial(console, error)
            raise
    if as_json:
        print_json(result.to_dict())
        print_warnings(console, result)
        return
    print_report(console, result.report)
    print_warnings(console, result)
    if events != "-":
        print_outputs(stdout(), result.outputs)


def _bytes(memory: str) -> int:
    try:
        return parse_bytes(memory)
    except ValueError as error:
        raise InputError(
            f"--memory is {memory!r}", expected="a size such as 800MB, 2GB or 1.5GiB"
        ) from error


def _watched(
    flow: "Workflow", values: Mapping[str, object], write: Watcher, console: Console, *, quiet: bool
) -> "RunResult":
    import anyio

    from unspoken.agents.cli.run_view import LiveView, PlainView

    if is_live(console):
        with LiveView(console, flow.spec) as live:
            return anyio.run(_follow, flow, values, (live, write))
    return anyio.run(_follow, flow, values, (write,) if quiet else (PlainView(console), write))


async def _follow(
    flow: "Workflow", values: Mapping[str, object], watchers: Sequence[Watcher]
) -> "RunResult":
    """Run to the end, telling the watchers of every event."""
    from unspoken.agents.runtime.events import RunFinished
    from unspoken.agents.workflow import RunResult

    finished: RunFinished | None = None
    async with aclosing(flow.stream(**dict[str, Any](values))) as events:
        async for event in events:
            for watch in watchers:
                watch(event)
            finished = event if isinstance(event, RunFinished) else finished
    if finished is None:
        raise RuntimeError("the run ended without its last event")
    return RunResult(finished.outputs, {}, finished.report)


@contextmanager
def _written_to(target: str | None) -> Iterator[Watcher]:
    """A watcher that writes events to a file, to stdout for ``-``, or nowhere."""
    if target is None:
        yield lambda event: None
    elif target == "-":
        yield lambda event: _write(event, results())
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
            yield lambda event: _write(event, file)


def _write(event: "Event", file: TextIO) -> None:
    from unspoken.agents.runtime.events import to_dict

    file.write(json.dumps(to_dict(event), ensure_ascii=False) + "\n")
    file.flush()
