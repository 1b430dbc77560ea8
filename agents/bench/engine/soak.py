"""Thousands of small runs in one process, and the memory that it takes meanwhile.

The model is a tiny random one, whatever model is named: what may grow is made by runs, and a large
model would only make fewer of them.
"""

import random
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import anyio

from unspoken.agents.agent import Agent
from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.engine.memory import living, resident_bytes, resident_kind
from unspoken.agents.bench.engine.share import figures, said, timed
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.models.model import LocalModel
from unspoken.agents.session import Session
from unspoken.agents.spec.spec import InputSpec
from unspoken.agents.testing import tiny_model
from unspoken.agents.workflow import Workflow

RUNS, WARM_UP, EVERY = SCALES["soak"].rows, 300, 100
"""How many runs there are, how many before the memory counts, and after how many it is read."""

MEMORY = 2_000_000
"""Bytes of the session that every other run is in: it is full before the memory counts."""

WORDS, NEW, SEED = 24, 4, 0

MB = 1_000_000

_KNOWN = tuple(map("".join, permutations("abcdefghijklmnop", 2)))
"""Words of the documents: few, since a tokenizer keeps the words that it has seen, some thousands
of them, and that is no growth of ours.
"""


def measure(
    model: LocalModel, *, text: Path | None = None, count: int | None = None, progress: Progress
) -> Measured:
    """A row for each reading of the memory, and by how much it grew after the warm-up."""
    runs = count or RUNS
    trial = _Trial(runs, progress)
    timing = timed(partial(anyio.run, trial.run_all), model.device)
    progress(f"{runs} runs: {said([timing])}")
    kind = resident_kind()
    read = [row["rss_mb"] for row in trial.rows if row["runs"] >= WARM_UP]
    growth = None if kind == "unknown" else round(read[-1] - read[0], 2)
    told = {"of": f"memory, {kind}", "runs": runs, "model": "tiny random Llama"}
    rows = [*trial.rows, {**told, **figures([timing])}]
    summary: dict[str, Any] = {"runs": runs, "rss_growth_mb": growth}
    first, last = trial.rows[WARM_UP // EVERY], trial.rows[-1]
    for what in ("tensor_mb", "jobs", "threads"):
        summary[f"{what}_growth"] = round(last[what] - first[what], 3)
    return rows, summary


class _Trial:
    """Small runs of one workflow, every other one in a session, each on a document of its own."""

    def __init__(self, runs: int, progress: Progress) -> None:
        self.runs, self.progress = runs, progress
        self.rows: list[dict[str, Any]] = []
        self._draw = random.Random(SEED)
        self._flow = _flow(tiny_model())

    async def run_all(self) -> None:
        """All runs, on one event loop; one in twenty is cancelled."""
        with Session(memory=MEMORY) as session:
            for number in range(self.runs + 1):
                if number % EVERY == 0:
                    self._read(number)
                if number < self.runs:
                    await self._one(session if number % 2 else None, cancels=number % 20 == 7)

    async def _one(self, session: Session | None, *, cancels: bool) -> None:
        document = " ".join(self._draw.choices(_KNOWN, k=WORDS))
        run = partial(self._flow.arun, document=document, session=session)
        with anyio.move_on_after(0.005 if cancels else None):
            await run()

    def _read(self, number: int) -> None:
        alive, resident = living(), resident_bytes()
        row = {
            "of": "memory",
            "runs": number,
            "rss_mb": None if resident is None else round(resident / MB, 2),
            "tensor_mb": round(alive.tensor_bytes / MB, 3),
            "jobs": alive.jobs,
            "threads": alive.threads,
        }
        self.rows.append(row)
        self.progress(f"{number} runs: {row['rss_mb']} MB")


def _flow(model: LocalModel) -> Workflow:
    """A reader, a solver that goes on from it, one that splices it, and an agent over items."""
    write = {"max_new_tokens": NEW}
    agents = [
        Agent("reader", model, prompt="{{ inputs.document }}", generate=None),
        Agent("solver", model, prompt="What is it about?", generate=write),
        Agent("other", model, prompt="Who wrote it?", system="Be brief.", generate=write),
        Agent("items", model, prompt="{{ item }}", for_each="inputs.rows", generate=write),
    ]
    rows = InputSpec(type="list", default=["one", "two"])
    flow = Workflow("soak", agents, inputs={"document": "text", "rows": rows})
    return flow.connect("reader", "solver").connect("reader", "other")
