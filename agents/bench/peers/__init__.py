"""Four whole workflows by every side, end to end: ours, LangGraph, `generate`, other engines.

Each side has a process of its own, which has loaded its model and warmed up. All read the same
prompts and write as many tokens, greedily, on as many threads. In every round each has its turn.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.peers.compared import require_same_prompts, rows_of, summary_of
from unspoken.agents.bench.peers.processes import Absent, Run, Worker, started
from unspoken.agents.bench.peers.sides import ENVIRONMENTS, SIDES, side_of
from unspoken.agents.bench.peers.workflows import DOCUMENTS, WARM_UP, WORKFLOWS, Turn, turns_of
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.models.model import LocalModel
from unspoken.channels.machine import in_turn

__all__ = ["measure"]

NEW, ROUNDS = 32, SCALES["peers"].rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A workflow with its document, as turns."""

    name: str
    document: str
    tokens: int
    turns: Sequence[Turn]

    def as_data(self) -> dict[str, Any]:
        """The same for a worker."""
        return {
            "name": self.name,
            "document": self.document,
            "tokens": self.tokens,
            "turns": [turn.as_data() for turn in self.turns],
        }


def measure(
    model: LocalModel,
    *,
    text: Path | None = None,
    environments: Path | None = None,
    count: int | None = None,
    only: Sequence[str] = (),
    progress: Progress,
) -> Measured:
    """A row per workflow and side, and how many times faster ours is.

    Args:
        model: The model of all agents and sides.
        text: What documents are cut from.
        environments: Folder of the other engines' environments.
        count: How many rounds.
        only: Workflows and sides to measure; all workflows where none is named, and all sides.
        progress: Called with a line now and then.
    """
    workflows, sides = _chosen(only)
    cases = {name: _case(model, text, name, NEW) for name in workflows}
    with ExitStack() as stack:
        job = _job(model, cases, stack.enter_context(tempfile.TemporaryDirectory()))
        absent: dict[str, str] = {}
        workers: dict[str, Worker] = {}
        for name in sides:
            try:
                side = side_of(name, model, environments or ENVIRONMENTS)
                workers[name] = stack.enter_context(started(side, job))
                progress(f"{name}: {workers[name].about}")
            except Absent as error:
                absent[name] = str(error)
                progress(f"{name} is left out: {error}")
        ways = {
            (case, name): partial(_run, worker, case, name, absent)
            for case in cases
            for name, worker in workers.items()
        }
        taken = in_turn(
            ways, count or ROUNDS, lambda part: progress(f"{part:.0%} of the rounds"), warm_up=False
        )
        about = {name: worker.about for name, worker in workers.items()}
    runs = {
        key: [run for run in of_way if run is not None]
        for key, of_way in taken.items()
        if key[1] not in absent
    }
    require_same_prompts({name: case.turns for name, case in cases.items()}, runs)
    rows = rows_of(model, runs, about)
    for row in rows:
        progress(f"{row['workflow']}, {row['side']}: {row['seconds']} s")
    return rows, {**summary_of(rows), **{f"absent_{name}": why for name, why in absent.items()}}


def _run(worker: Worker, case: str, name: str, absent: dict[str, str]) -> Run | None:
    """A side's run; None of one that has ended, then and from then on: the others go on."""
    if name in absent:
        return None
    try:
        return worker.run(case)
    except Absent as error:
        absent[name] = f"{case}: {error}"
        return None


def _chosen(only: Sequence[str]) -> tuple[list[str], list[str]]:
    """The workflows and the sides that are named; all where none is."""
    workflows = [name for name in WORKFLOWS if name != WARM_UP]
    return (
        [name for name in workflows if name in only] or workflows,
        [name for name in SIDES if name in only] or list(SIDES),
    )


def _case(model: LocalModel, text: Path | None, name: str, tokens: int) -> _Case:
    document = model.text.decode(cut_passages(model, text, 1, DOCUMENTS[name])[0])
    turns = turns_of(WORKFLOWS[name](model, tokens), model, document, tokens)
    return _Case(name=name, document=document, tokens=tokens, turns=turns)


def _job(model: LocalModel, cases: Mapping[str, _Case], scratch: str) -> dict[str, Any]:
    """What every side is told."""
    warm_up = _case(model, None, WARM_UP, 4)
    lengths = [turn.length() + turn.tokens for case in cases.values() for turn in case.turns]
    return {
        "folder": model.hf.name_or_path,
        "dtype": str(model.dtype).removeprefix("torch."),
        "pad": model.tokenizer.pad_token_id or 0,
        "stop_ids": sorted(model.stop_ids),
        "threads": torch.get_num_threads(),
        "longest": max(lengths) + 8,
        "scratch": scratch,
        "warm_up": warm_up.as_data(),
        "workflows": {name: case.as_data() for name, case in cases.items()},
    }
