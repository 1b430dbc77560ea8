"""What a run gave and what it cost."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from unspoken.agents.cli.console import (
    count,
    duration,
    failure,
    print_reasons,
    print_table,
    shown,
    size,
)
from unspoken.agents.cli.results import echo
from unspoken.channels.errors import RunWaiting
from unspoken.channels.sequences import distinct

if TYPE_CHECKING:
    from unspoken.agents.planning.forecast import Forecast
    from unspoken.agents.runs.records import Question
    from unspoken.agents.runtime.report import LateMessage, RunReport, RunResult
    from unspoken.agents.spec.spec import WorkflowSpec
    from unspoken.channels.errors import RunError

MOST_SHOWN = 300
"""Characters shown of what an agent wrote in a run that failed."""


def print_report(console: Console, report: "RunReport") -> None:
    """Print what a run cost: the agents' turns, the messages, and why they went so."""
    _print_turns(console, report)
    if report.edges:
        _print_messages(console, report)
        reasons = [(f"{edge.sharer} → {edge.receiver}", edge.reason) for edge in report.edges]
        print_reasons(console, reasons)


def print_summary(
    console: Console, report: "RunReport", forecast: "Forecast | None" = None
) -> None:
    """Print one line on what a run cost, and each edge that fell back to text.

    Args:
        console: Where.
        report: The run.
        forecast: What it was expected to take.
    """
    for edge, reason in distinct(report.fallbacks):
        _warn(console, f"{edge.replace('->', '→')} fell back to text: {reason}")
    console.print(f"  {', '.join(_totals(report, forecast))}", soft_wrap=True)


def _totals(report: "RunReport", forecast: "Forecast | None") -> Iterator[str]:
    """What the whole run took, as far as it took anything."""
    turns = [turn for of_agent in report.agents.values() for turn in of_agent]
    reused = sum(turn.reused_tokens for turn in turns)
    if prompt := sum(turn.prompt_tokens for turn in turns):
        yield f"{count(reused)} of {count(prompt)} prompt tokens reused"
    foretold = "" if forecast is None else f" ({duration(forecast.seconds)} foretold)"
    yield f"ran in {duration(report.seconds)}{foretold}"
    if report.peak_state_bytes:
        yield f"{size(report.peak_state_bytes)} of state held at most"
    if report.shared_state_bytes:
        yield f"{size(report.shared_state_bytes)} of it shared"
    if report.spilled_state_bytes:
        yield f"{size(report.spilled_state_bytes)} put on disk"
    if report.prefix_hits:
        turns_that = "turn" if report.prefix_hits == 1 else "turns"
        yield f"{report.prefix_hits} {turns_that} began with tokens that were computed before"


def print_warnings(console: Console, result: "RunResult") -> None:
    """Print what ended otherwise than its author may have wished."""
    for warning in _warnings(result):
        _warn(console, warning)


def _warnings(result: "RunResult") -> Iterator[str]:
    for loop in result.report.loops_ended:
        if loop.when is not None:
            ends = f"{loop.sharer} → {loop.receiver}"
            limit = f"{loop.receiver} had its {loop.turns} turns (max_turns)"
            yield f"{ends}: the loop ended at its limit: {limit}, and '{loop.when}' still held"
    for item in result.report.failed_items:
        yield failure(item.error, default=item.default)
    for turn in result.report.failed_turns:
        yield failure(turn.error, default=turn.default)
    for empty in result.report.empty_turns:
        why = f"all of its {empty.items} items failed" if empty.items else "its list is empty"
        yield f"{empty.agent}: skipped, {why}"
    for edge, late in Counter(map(_ends, result.report.late_messages)).items():
        yield f"{edge}: {late} came too late and {'was' if late == 1 else 'were'} dropped"
    skipped = [name for name, turns in result.report.agents.items() if not turns]
    if skipped and not any(result.outputs.values()):
        yield f"there is no output; skipped: {', '.join(skipped)}"


def _ends(edge: "LateMessage") -> str:
    return f"{edge.sharer} → {edge.receiver}"


def _warn(console: Console, text: str) -> None:
    line = Text.assemble(("! ", "bold yellow"), shown(text))
    console.print(Padding(line, (0, 0, 0, 2)))


def _print_turns(console: Console, report: "RunReport") -> None:
    projects = any(turn.projected_tokens for turns in report.agents.values() for turn in turns)
    items = any(turn.item is not None for turns in report.agents.values() for turn in turns)
    columns = ["agent", "turn", *(["item"] if items else []), "prompt", "prefilled", "reused"]
    columns += ["recomputed", *(["projected"] if projects else [])]
    columns += ["generated", "ttft", "time"]
    rows = []
    for name, turns in report.agents.items():
        for turn in turns:
            tokens = [turn.prompt_tokens, turn.prefilled_tokens, turn.reused_tokens]
            tokens += [turn.recomputed_tokens]
            tokens += [turn.projected_tokens] if projects else []
            tokens += [turn.generated_tokens]
            times = [duration(turn.ttft_s), duration(turn.seconds)]
            item = [_item(turn.item)] if items else []
            rows.append([name, str(turn.turn), *item, *map(count, tokens), *times])
        if not turns:
            rows.append([name, "skipped", *["–"] * (len(columns) - 2)])
    print_table(console, "Agents (tokens)", columns, rows)


def print_prompts(console: Console, report: "RunReport") -> None:
    """Print what each model read, turn by turn of its context, and what it wrote then."""
    for name, turns in report.agents.items():
        for turn in turns:
            item = "" if turn.item is None else f", item {turn.item + 1}"
            console.print(Text(f"{shown(name)}, turn {turn.turn}{item}", style="bold"))
            for part in turn.prompt:
                _print_words(console, part.role, part.text)
            if turn.finish != "none":
                _print_words(console, f"wrote ({turn.finish})", turn.text)
            console.print()


def _print_words(console: Console, who: str, text: str) -> None:
    console.print(Text(f"  {who}:", style="dim"))
    console.print(Padding(shown(text), (0, 0, 0, 4), expand=False))


def _item(item: int | None) -> str:
    return "" if item is None else str(item)


def _print_messages(console: Console, report: "RunReport") -> None:
    projects = any(edge.projected for edge in report.edges)
    items = any(edge.item is not None for edge in report.edges)
    columns = ["from", "to", "channel", "exact", *(["item"] if items else []), "tokens", "reused"]
    columns += ["recomputed", *(["projected"] if projects else [])]
    columns += ["size", "time"]
    rows = []
    for edge in report.edges:
        tokens = [edge.tokens, edge.reused, edge.repaired]
        tokens += [edge.projected] if projects else []
        words = [edge.sharer, edge.receiver, edge.channel, "yes" if edge.exact else "no"]
        words += [_item(edge.item)] if items else []
        rows.append([*words, *map(count, tokens), size(edge.bytes), duration(edge.seconds)])
    print_table(console, "Edges", columns, rows, range(4))


def print_partial(console: Console, error: "RunError", spec: "WorkflowSpec") -> None:
    """Print what had finished when a run failed: what each agent wrote, shortened.

    Of private workflows it is the names alone.
    """
    partial: RunResult | None = error.partial
    if partial is None or not partial.agents:
        return
    console.print(Text("what had finished", style="bold"))
    for name, agent in partial.agents.items():
        if _is_private(spec, name):
            console.print(shown(f"  {name}"))
            continue
        words = " ".join(agent.text.split())
        tail = "…" if len(words) > MOST_SHOWN else ""
        console.print(shown(f"  {name}: {words[:MOST_SHOWN]}{tail}"), soft_wrap=True)


def print_questions(console: Console, questions: Iterable["Question"]) -> None:
    """Print what a run asks."""
    for one in questions:
        to = f" to {one.receiver}" if one.receiver else ""
        console.print(Text.assemble((f"{one.id} ", "bold"), f"{one.kind}{to}:"))
        console.print(Padding(shown(one.text), (0, 0, 0, 2)))


def failed_run(error: "RunError", spec: "WorkflowSpec") -> dict[str, object]:
    """A run that failed, or waits, as plain data: the error, and what had finished.

    Words of private workflows are left out.
    """
    partial: RunResult | None = error.partial
    told = {
        "kind": type(error).__name__,
        "found": error.found,
        "expected": error.expected,
        "fix": error.fix,
        "agent": error.agent,
        "edge": error.edge,
    }
    if isinstance(error, RunWaiting):
        return {
            "run_id": error.run_id,
            "status": "paused",
            "questions": [asdict(question) for question in error.questions],
        }
    if partial is None:
        return {"error": told}
    wrote = {
        name: {"text": agent.text, "items": agent.items}
        for name, agent in partial.agents.items()
        if not _is_private(spec, name)
    }
    return {"error": told, "finished": wrote, **partial.to_dict()}


def _is_private(spec: "WorkflowSpec", agent: str) -> bool:
    from unspoken.agents.runtime.event_data import private_at

    return private_at(spec, agent.split("/")[:-1])


def print_outputs(console: Console, outputs: Mapping[str, str]) -> None:
    """Print the outputs with their names; a single one that goes to a pipe or a file, bare."""
    for name, text in outputs.items():
        if console.is_terminal:
            console.print(Text(name, style="bold green"))
            console.print(shown(text), soft_wrap=True)
        else:
            echo(text if len(outputs) == 1 else f"{name}:\n{text}\n")
