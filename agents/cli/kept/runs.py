"""``unspoken runs``: runs that are kept, and what they wait for."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspoken.agents.cli.console import print_facts, print_json, print_table, shown, stderr, stdout
from unspoken.agents.cli.options import Options
from unspoken.agents.cli.progress import load_flow
from unspoken.agents.cli.report_view import print_questions
from unspoken.agents.cli.results import echo
from unspoken.agents.cli.run import (
    AllowToolsOption,
    AnywayOption,
    JsonOption,
    StoreOption,
    run_flow,
)
from unspoken.channels.errors import InputError, StoreError

if TYPE_CHECKING:
    from unspoken.agents.runs import RunStore, StoredRun
    from unspoken.agents.spec.loader import LoadedWorkflow

_OVER = ("finished", "cancelled")

RunArgument = Annotated[str, typer.Argument(metavar="ID", help="The run's id.")]


def list_(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the runs in the store, the last one first."""
    runs = _store(store)
    lines = [_line(runs, run) for run in runs.runs()]
    if as_json:
        print_json(lines)
        return
    if not lines:
        stdout().print(shown(f"no runs in {runs.folder}; unspoken run FILE --run-id ID keeps one"))
        return
    columns = ("id", "workflow", "status", "turns", "asks", "begun")
    rows = [[str(line[column]) for column in columns] for line in lines]
    print_table(stdout(), "Runs", columns, rows, (0, 1, 2, 4, 5))


def show(
    run: RunArgument,
    events: Annotated[
        bool, typer.Option("--events", help="Print its events instead, each as a line of JSON.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run: where it is, what its agents wrote, and what it asks."""
    runs = _store(store)
    stored = runs.get(run)
    if events:
        for told in runs.told(run):
            echo(told)
        return
    words = [{"agent": a, "turn": turn, "text": text} for a, turn, text in runs.words(run)]
    if as_json:
        data = {**asdict(stored), **_line(runs, stored)}
        data["unknown_calls"] = data.pop("calls")
        print_json({**data, "words": words})
        return
    console, line = stdout(), _line(runs, stored)
    facts = [(name, str(line[name])) for name in ("id", "workflow", "status", "begun", "file")]
    facts += [(f"input {name}", str(value)) for name, value in stored.origin.inputs.items()]
    facts += [("error", stored.error)] if stored.error else []
    print_facts(console, facts)
    for one in words:
        console.print(shown(f"\n{one['agent']}, turn {one['turn']}:\n  {one['text']}"))
    for call in stored.calls:
        what = f"{call.tool}({call.arguments})"
        console.print(shown(f"\n{call.agent}, turn {call.turn}: may have called {what}"))
    if stored.open:
        console.print()
        print_questions(console, stored.open)


def resume(
    run: RunArgument,
    store: StoreOption = None,
    anyway: AnywayOption = False,
    allow_tools: AllowToolsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Go on with a run where it was, with the file and the inputs that it was begun with."""
    stored = _store(store).get(run)
    _go_on(stored, store, anyway=anyway, allow_tools=allow_tools, as_json=as_json)


def answer(
    run: RunArgument,
    words: Annotated[
        str,
        typer.Argument(
            metavar="ANSWER", help="What the person says: yes or no to approve, else a text."
        ),
    ],
    question: Annotated[
        str | None,
        typer.Option(metavar="QUESTION", help="Which question, where the run asks several."),
    ] = None,
    later: Annotated[
        bool, typer.Option("--later", help="Keep the answer, and do not go on with the run yet.")
    ] = False,
    again: Annotated[
        bool,
        typer.Option(
            "--again",
            help="Take back an answer that was given, and what was handed over since; turns that "
            "read something else run again.",
        ),
    ] = False,
    store: StoreOption = None,
    allow_tools: AllowToolsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer what a run asks, and go on with it once nothing is left to answer."""
    from unspoken.agents.runs.answers import answer_questions

    runs = _store(store)
    stored = runs.get(run)
    said = words if question is None else {question: words}
    left = answer_questions(runs, run, said, again=again)
    if left and not as_json:
        print_questions(stderr(), left)
    if left or later or not _has_refs(stored):
        if not later and not left:
            stderr().print(shown("kept; its models were made in Python: flow.resume(run_id)"))
        return
    _go_on(stored, store, anyway=False, allow_tools=allow_tools, as_json=as_json)


def cancel(run: RunArgument, store: StoreOption = None) -> None:
    """Cancel a run; where it goes on in another process, it ends at its next turn."""
    runs = _store(store)
    runs.get(run)
    if not runs.cancel(run):
        raise StoreError(
            f"run {run} is over already: it is {runs.get(run).status}",
            kind="over",
            expected="a run that goes on or waits",
            fix=f"unspoken runs clean {run} removes it",
        )
    echo(run)


def clean(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Runs; those that are over.")
    ] = None,
    older: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Only runs that ended so long ago.")
    ] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Failed runs too, which could go on.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="All runs, of whatever version; sessions stay.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    store: StoreOption = None,
) -> None:
    """Remove runs that are over, or those that are named, with what they keep."""
    runs = _store(store)
    if everything:
        if not yes:
            what = f"Remove all runs in {runs.folder}? Its sessions stay."
            typer.confirm(what, abort=True, err=True)
        runs.clear()
        echo(runs.folder)
        return
    before = (datetime.now(UTC) - timedelta(days=older or 0)).timestamp()
    named = [runs.get(name) for name in ids or ()]
    statuses = (*_OVER, "failed") if failed else _OVER

    def is_over(run: "StoredRun") -> bool:
        return run.status in statuses and run.updated <= before

    over = [run for run in runs.runs() if is_over(run)]
    gone = named if ids else over
    if gone and not yes:
        typer.confirm(f"Remove {len(gone)} runs from {runs.folder}?", abort=True, err=True)
    for run in gone:
        lock = runs.lock(run.id)
        lock.acquire()
        try:
            now = runs.find(run.id)  # somebody may have gone on with it meanwhile
            if now is None or not (ids or is_over(now)):
                continue
            runs.remove(run.id)
        finally:
            lock.release()
        echo(run.id)


def _store(folder: Path | None) -> "RunStore":
    from unspoken.agents.runs import RunStore

    return RunStore(folder)


def _line(store: "RunStore", run: "StoredRun") -> dict[str, Any]:
    """A run in JSON, and in a line for people."""
    status: str = run.status
    if status == "running" and not store.lock(run.id).held_elsewhere:
        status = "interrupted"
    return {
        "id": run.id,
        "workflow": run.origin.workflow.get("name", ""),
        "status": status,
        "turns": run.turns,
        "asks": ", ".join(question.id for question in run.open),
        "begun": datetime.fromtimestamp(run.created).isoformat(" ", "seconds"),
        "file": run.origin.file,
    }


def _has_refs(run: "StoredRun") -> bool:
    """Whether its models can be loaded here: they were not made in a Python program."""
    return "in memory" not in _told("models", run.origin.workflow)


def _told(key: str, workflow: Mapping[str, Any]) -> str:
    """What a workflow, and those inside of it, say under a key, as text."""
    agents = workflow.get("agents", {}).values()
    inner = [_told(key, agent["workflow"]) for agent in agents if "workflow" in agent]
    return " ".join((str(list(workflow.get(key, {}).values())), *inner))


def _go_on(
    run: "StoredRun", store: Path | None, *, anyway: bool, allow_tools: bool, as_json: bool
) -> None:
    if not _has_refs(run):
        raise InputError(
            f"run {run.id} has models that were made in a Python program",
            expected="models with references",
            fix=f"go on there: flow.resume({run.id!r})",
        )
    flow = load_flow(_source(run), stderr(), quiet=as_json, fit=True, allow_tools=allow_tools)
    options = Options(run_id=run.id, store=store, anyway=anyway, session=run.origin.session)
    run_flow(flow, {}, options, as_json=as_json, quiet=as_json)


def _source(run: "StoredRun") -> "LoadedWorkflow":
    """The workflow of a run: its file's, or as it was where the file is gone."""
    from unspoken.agents.runs.origin import NOT_KEPT
    from unspoken.agents.spec.loader import LoadedWorkflow, load_workflow
    from unspoken.agents.spec.spec import WorkflowSpec

    file = run.origin.file
    if file and Path(file).is_file():
        return load_workflow(file)
    if NOT_KEPT in _told("mcp_servers", run.origin.workflow):
        raise InputError(
            f"the file of run {run.id} is gone, and its servers of tools have values that no store "
            "keeps",
            expected=f"the workflow's file: {file}" if file else "the program that began it",
            fix="put the file back, or go on in Python: flow.resume(run_id)",
        )
    spec = WorkflowSpec.model_validate(run.origin.workflow)
    return LoadedWorkflow(spec, file or "workflow.yaml", {})
