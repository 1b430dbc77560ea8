"""``unspoken plan``, ``validate``, ``graph`` and ``schema``: a workflow before it runs."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from unspoken.agents.cli.console import (
    count,
    duration,
    print_error,
    print_facts,
    print_json,
    print_reasons,
    print_table,
    shown,
    size,
    stderr,
    stdout,
)
from unspoken.agents.cli.progress import load_flow
from unspoken.agents.cli.results import echo
from unspoken.agents.cli.run import AllowToolsOption, InputsOption, JsonOption, WorkflowFile
from unspoken.channels.errors import WorkflowError

if TYPE_CHECKING:
    from unspoken.agents.planning.plan import EdgePlan, Plan

CalibrateOption = Annotated[
    bool,
    typer.Option("--calibrate", help="Measure the models on this machine first: seconds each."),
]


def plan(
    file: WorkflowFile,
    inputs: InputsOption = None,
    allow_tools: AllowToolsOption = False,
    calibrate: CalibrateOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show which channel each edge gets, and why.

    The models are loaded, and prepared on first use; nothing is run. Give all inputs, some or none:
    token counts that need the others stay unknown. With all inputs it foretells what a run takes,
    once --calibrate has measured the models on this machine.
    """
    from unspoken.agents.spec.input_words import read_inputs
    from unspoken.agents.spec.inputs import ON_COMMAND_LINE, check_inputs
    from unspoken.agents.spec.loader import load_workflow

    source = load_workflow(file)
    given = read_inputs(source.spec, inputs or [])
    # Before models are loaded.
    check_inputs(source.spec, given, partial=True, how=ON_COMMAND_LINE)
    flow = load_flow(source, stderr(), quiet=as_json, allow_tools=allow_tools)
    if calibrate:
        flow.calibrate()
    chosen = flow.plan(given)
    if as_json:
        print_json(chosen.to_dict())
    else:
        _print_plan(stdout(), chosen)
        _print_forecast(stdout(), chosen)
    for warning in chosen.warnings:
        stderr().print(shown(f"warning: {source.placed(warning)}"))


def _print_plan(console: Console, chosen: "Plan") -> None:
    if chosen.edges:
        columns = ["from", "to", "share", "channel", "mode", "tokens", "bytes/token"]
        rows = [_row(edge) for edge in chosen.edges]
        if chosen.forecast is not None:
            columns += ["time", "size"]
            for row, told in zip(rows, chosen.forecast.edges, strict=True):
                row += [duration(told.seconds), size(told.bytes)]
        print_table(console, f"Plan of {chosen.workflow}", columns, rows, range(5))
    else:
        console.print(shown(f"{chosen.workflow} has no edges"))
    for edge in chosen.edges:
        ends = f"{edge.sharer} → {edge.receiver}"
        print_reasons(console, [(ends, edge.reason)])
        if edge.advice:
            advice = Text.assemble(("advice: ", "green"), shown(edge.advice))
            console.print(Padding(advice, (0, 0, 0, 4)))
    for agent, inner in chosen.inner.items():
        console.print(shown(f"\ninside of {agent}:"))
        _print_plan(console, inner)
    for model, notes in chosen.notes.items():
        print_reasons(console, [(f"model {model}", note) for note in notes])


def _print_forecast(console: Console, chosen: "Plan") -> None:
    """Print what a run is expected to take, and from what that is known."""
    forecast = chosen.forecast
    if forecast is None:
        hint = "no times are foretold: that needs all inputs, and --calibrate once on this machine"
        console.print(shown(f"  {hint}"), style="dim", soft_wrap=True)
        return
    rows = [
        [
            name,
            f"{one.turns:.3g}",
            count(one.prompt_tokens),
            count(one.computed_tokens),
            count(one.generated_tokens),
            duration(one.seconds),
            size(one.bytes),
        ]
        for name, one in forecast.agents.items()
    ]
    columns = ["agent", "turns", "prompt", "computed", "generated", "time", "state"]
    print_table(console, "Foretold (tokens)", columns, rows)
    runs = f"{forecast.runs} earlier run" + ("" if forecast.runs == 1 else "s")
    by = f"lengths of {runs}" if forecast.runs else "every agent at its limits"
    facts = [
        ("the run", f"{duration(forecast.seconds)}, {size(forecast.bytes)} over its edges; {by}"),
        ("at most", f"{duration(forecast.most_seconds)}, with every turn and every token"),
    ]
    facts += [
        (
            f"model {name}",
            f"measured {one.at} UTC, {one.dtype}, {one.processor}, {one.threads} threads",
        )
        for name, one in forecast.calibrated.items()
    ]
    facts += [("not counted", what) for what in ("loading", *forecast.uncounted)]
    print_facts(console, facts)


def _row(edge: "EdgePlan") -> list[str]:
    channel = f"{edge.channel} (not {edge.asked})" if edge.fallback else edge.channel
    bytes_per_token = size(edge.bytes_per_token) if edge.bytes_per_token else "–"
    ends = [edge.sharer, edge.receiver]
    return [*ends, edge.share, channel, edge.mode, count(edge.tokens), bytes_per_token]


def validate(file: WorkflowFile) -> None:
    """Check a workflow file: everything wrong with it, with line and column. Nothing is loaded."""
    from unspoken.agents.models.catalog import require_embedded
    from unspoken.agents.spec.loader import load_workflow
    from unspoken.agents.spec.references import comment_warnings

    try:
        source = load_workflow(file, require_ref=require_embedded)
    except WorkflowError as error:
        print_error(error, whole=True)
        raise typer.Exit(error.exit_code) from error
    spec = source.spec
    for warning in comment_warnings(spec):
        typer.echo(f"warning: {source.placed(warning)}", err=True)
    agents, edges = _counted(len(spec.agents), "agent"), _counted(len(spec.edges), "edge")
    echo(f"{file}: valid: {agents}, {edges}")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def graph(file: WorkflowFile) -> None:
    """Draw a workflow as a Mermaid flowchart."""
    from unspoken.agents.spec.graph import to_mermaid
    from unspoken.agents.spec.loader import load_workflow

    echo(to_mermaid(load_workflow(file).spec), nl=False)


def schema(
    events: Annotated[
        bool, typer.Option("--events", help="The schema of a run's events, as run writes them.")
    ] = False,
) -> None:
    """Print the JSON schema of workflow files, for editors; or that of events."""
    if events:
        from unspoken.agents.runtime.event_data import event_schema

        print_json(event_schema())
        return
    from unspoken.agents.spec.spec import json_schema

    print_json(json_schema())
