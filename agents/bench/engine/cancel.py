"""A run that is cancelled at any moment: how soon it is over, and what is left of it."""

import random
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import anyio

from unspoken.agents.agent import Agent
from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.engine.memory import living
from unspoken.agents.bench.engine.share import figures, said, timed
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.models.model import LocalModel
from unspoken.agents.runtime.events import RunFinished
from unspoken.agents.session import Session
from unspoken.agents.spec.spec import InputSpec
from unspoken.agents.workflow import Workflow

MOMENTS, SEED, ROUNDS = SCALES["cancel"].rows, 0, 3
"""How many runs are cancelled, of which random moments, and how many are not."""

TOKENS, NEW, SOLVERS, ITEMS = 512, 32, 6, 4
"""Tokens of the document and of each answer; how many solvers and items there are."""

SETTLES_S = 0.2
"""What a device's thread may take, after the last run, to put down what it holds."""

SYSTEM = "You answer in few words."


def measure(
    model: LocalModel, *, text: Path | None = None, count: int | None = None, progress: Progress
) -> Measured:
    """How long after a cancel each run was over, and what was alive before the runs and after.

    A round is the longest time between two events of a run that nobody cancels: what is under way
    when the cancel comes may take so long.
    """
    (words,) = cut_passages(model, text, 1, TOKENS)
    flow = _flow(model, model.text.decode(words))
    with Session() as session:
        trial = _Trial(flow, session)
        timings = [timed(partial(anyio.run, trial.follow), model.device) for _ in range(ROUNDS + 1)]
        timings, trial.gaps, trial.seconds = timings[1:], trial.gaps[1:], trial.seconds[1:]
        round_s = median(trial.gaps)
        progress(f"nobody cancels: {said(timings)}; a round of {round_s:.3f} s at most")
        cancel = partial(anyio.run, trial.cancel_all, count or MOMENTS, progress)
        cancelling = timed(cancel, model.device)
        trial.expected = trial.answers
        anyio.run(trial.follow)
    leaks = [row for row in trial.alive if row["after"] > row["before"]]
    worst = max(trial.latencies)
    progress(f"over after {worst:.3f} s at the latest; {len(leaks)} kinds of leaks")
    rows = [
        {"of": "nobody cancels", "longest_gap_ms": _ms(round_s), **figures(timings)},
        {
            "of": "cancelled",
            "runs": len(trial.latencies),
            "worst_ms": _ms(worst),
            "median_ms": _ms(median(trial.latencies)),
            "same_answers_afterwards": trial.answers == trial.expected,
            **figures([cancelling]),
        },
        *trial.alive,
    ]
    return rows, {"worst_ms_beyond_one_round": _ms(worst - round_s), "leaks": len(leaks)}


class _Trial:
    """Runs of one workflow in one session, on one event loop after the other.

    Attributes:
        answers, expected: What the agents wrote in the last whole run, and in one before.
        gaps: Of each whole run, the longest time between two events, in seconds.
        seconds: How long each whole run took.
        latencies: Seconds from a cancel to the end of its run.
        alive: Rows of what was alive before the runs that were cancelled and after them.
    """

    def __init__(self, flow: Workflow, session: Session) -> None:
        self.flow, self.session = flow, session
        self.answers: dict[str, str] = {}
        self.expected: dict[str, str] = {}
        self.gaps: list[float] = []
        self.seconds: list[float] = []
        self.latencies: list[float] = []
        self.alive: list[dict[str, Any]] = []

    async def follow(self) -> None:
        """A run that nobody cancels."""
        times = [perf_counter()]
        async with aclosing(self.flow.stream(session=self.session)) as events:
            async for event in events:
                times.append(perf_counter())
                if isinstance(event, RunFinished):
                    self.answers = dict(event.outputs)
        self.gaps.append(max(later - one for one, later in pairwise(times)))
        self.seconds.append(times[-1] - times[0])

    async def cancel_all(self, moments: int, progress: Progress) -> None:
        """The runs that are cancelled, on one event loop, where they might leave something."""
        draw = random.Random(SEED)
        await self._cancel(0.0)  # what the first run on a loop makes is no leak
        self.latencies.clear()
        before = await self._alive()
        longest = median(self.seconds)
        for number in range(moments):
            await self._cancel(draw.uniform(0.0, longest))
            if (number + 1) % 10 == 0:
                progress(f"{number + 1} of {moments} runs cancelled")
        after = await self._alive()
        self.alive = [
            {"of": "alive", "what": what, "before": count, "after": after[what]}
            for what, count in before.items()
        ]

    async def _cancel(self, after: float) -> None:
        """Begin a run, cancel it so many seconds later, and wait for its end."""
        scope, over = anyio.CancelScope(), anyio.Event()

        async def run() -> None:
            with scope:
                await self.flow.arun(session=self.session)
            over.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await anyio.sleep(after)
            scope.cancel()
            asked = perf_counter()
            await over.wait()
            self.latencies.append(perf_counter() - asked)

    async def _alive(self) -> dict[str, int]:
        await anyio.sleep(SETTLES_S)
        held = self.session.statistics()
        return {
            **asdict(living()),
            "tickets": held.tickets,
            "leased_bytes": held.bytes_leased,
            "held_bytes": held.bytes_held - held.bytes_cached,
        }


def _flow(model: LocalModel, document: str) -> Workflow:
    """A reader, solvers that take its cache over or splice it, and an agent that runs over items.

    So a cancel may come in a prefill, in a carry, in a splice, and while many decode.
    """
    write = {"max_new_tokens": NEW}
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    solvers = [
        Agent(
            f"solver{number}",
            model,
            prompt=f"What is the text about? Give answer {number}.",
            system=SYSTEM if number % 2 else None,
            generate=write,
        )
        for number in range(SOLVERS)
    ]
    items = Agent("items", model, prompt="{{ item }}", for_each="inputs.rows", generate=write)
    flow = Workflow(
        "cancel",
        [reader, *solvers, items],
        inputs={
            "document": InputSpec(type="text", default=document),
            "rows": InputSpec(type="list", default=[f"Say {number}." for number in range(ITEMS)]),
        },
    )
    for solver in solvers:
        flow.connect(reader, solver)
    return flow


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
