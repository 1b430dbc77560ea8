"""A workflow whose states are four times over its memory: what that costs, and what it changes."""

from collections.abc import Callable
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from unspoken.agents.agent import Agent
from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.engine.memory import resident_bytes, resident_kind
from unspoken.agents.bench.engine.share import Timing, figures, median_seconds, said, timed
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.models.model import LocalModel
from unspoken.agents.runtime.events import RunFinished
from unspoken.agents.session import Session
from unspoken.agents.workflow import Workflow
from unspoken.channels.machine import in_turn

OVER, DOCUMENTS, TOKENS, NEW, ROUNDS = 4, 16, 512, 16, SCALES["budget"].rows
"""How many times over the budget the states are, how many documents there are, tokens of each, of
each answer, and how often it is measured.
"""

FREE, TIGHT = "no budget", "a quarter"

MB = 1_000_000


@dataclass(slots=True)
class _Seen:
    """What was seen of the runs under one budget.

    Attributes:
        timings: One a run.
        answers: The last run's outputs.
        peak: The most bytes that states and leases took at a time.
        resident: By how many bytes the process grew at most within a run; None where unknown.
        spilled: Bytes that the last run gave up for a copy on disk.
    """

    timings: list[Timing] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    peak: int = 0
    resident: int | None = None
    spilled: int = 0


def measure(
    model: LocalModel, *, text: Path | None = None, count: int | None = None, progress: Progress
) -> Measured:
    """A row without a budget and one with a quarter of what that took, and their ratios."""
    passages = cut_passages(model, text, DOCUMENTS, TOKENS)
    flow = _flow(model, len(passages))
    given = {f"document{at}": model.text.decode(ids) for at, ids in enumerate(passages)}
    all_of_it = _needs(flow, given)
    budget = all_of_it // OVER
    progress(f"states of {all_of_it / MB:.1f} MB, a budget of {budget / MB:.1f} MB")
    seen = {FREE: _Seen(), TIGHT: _Seen()}
    limits = {FREE: None, TIGHT: budget}
    ways: dict[str, Callable[[], Timing]] = {
        name: partial(_timed, model, flow, given, limits[name], seen[name]) for name in seen
    }
    for name, timings in in_turn(ways, count or ROUNDS).items():
        seen[name].timings = timings
        progress(f"{name}: {said(timings)}")
    rows = [_row(name, limits[name], seen[name]) for name in seen]
    free, tight = seen[FREE], seen[TIGHT]
    return rows, {
        "answers_equal": free.answers == tight.answers,
        "peak_over_budget": round(tight.peak / budget, 3),
        "slowdown": round(median_seconds(tight.timings) / median_seconds(free.timings), 3),
    }


def _flow(model: LocalModel, documents: int) -> Workflow:
    """A reader for each document, and solvers that answer one after another.

    All readers may read at once, and the state of the last waits until all other solvers are done.
    """
    numbers = range(documents)
    readers = [
        Agent(f"reader{at}", model, prompt=f"{{{{ inputs.document{at} }}}}", generate=None)
        for at in numbers
    ]
    solvers = [
        Agent(
            f"solver{at}",
            model,
            prompt="What is the last text about?",
            generate={"max_new_tokens": NEW},
        )
        for at in numbers
    ]
    flow = Workflow("budget", [*readers, *solvers])
    for at in numbers:
        flow.connect(readers[at], solvers[at])
        if at:
            flow.connect(solvers[at - 1], solvers[at], "text")
    return flow


def _needs(flow: Workflow, given: dict[str, Any]) -> int:
    """Bytes that the states take where nothing bounds them."""
    return flow.run(**given).report.peak_state_bytes


def _timed(
    model: LocalModel, flow: Workflow, given: dict[str, Any], limit: int | None, seen: _Seen
) -> Timing:
    return timed(partial(anyio.run, partial(_follow, flow, given, limit, seen)), model.device)


async def _follow(flow: Workflow, given: dict[str, Any], limit: int | None, seen: _Seen) -> None:
    """A run; at each of its events its memory is read."""
    before = resident_bytes()
    with nullcontext() if limit is None else Session(memory=limit) as session:
        async with aclosing(flow.stream(**given, session=session)) as events:
            async for event in events:
                if session is not None:
                    held = session.statistics()
                    seen.peak = max(seen.peak, held.peak_bytes, held.bytes_held + held.bytes_leased)
                    seen.spilled = held.spilled_bytes
                now = resident_bytes()
                if now is not None and before is not None:
                    seen.resident = max(seen.resident or 0, now - before)
                if isinstance(event, RunFinished):
                    seen.answers = dict(event.outputs)
                    seen.peak = max(seen.peak, event.report.peak_state_bytes)


def _row(name: str, limit: int | None, seen: _Seen) -> dict[str, Any]:
    return {
        "memory": name,
        "budget_mb": None if limit is None else round(limit / MB, 2),
        "peak_mb": round(seen.peak / MB, 2),
        "spilled_mb": round(seen.spilled / MB, 2),
        "process_grew_mb": None if seen.resident is None else round(seen.resident / MB, 1),
        "process": resident_kind(),
        **figures(seen.timings),
    }
