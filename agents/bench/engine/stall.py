"""How long a decoding agent waits for its next token while a neighbour reads a long document.

The times are those at which the stream of events gives the tokens to whoever follows the run.
"""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import anyio
import torch

from unspoken.agents.agent import Agent
from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.engine.share import Timing, figures, said, timed
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.models.model import LocalModel
from unspoken.agents.runtime.events import PrefillProgress, TokenWritten
from unspoken.agents.spec.spec import InputSpec
from unspoken.agents.workflow import Workflow
from unspoken.channels.machine import in_turn

NEIGHBOUR, TOKENS, ROUNDS = 2048, 96, SCALES["stall"].rows
"""Tokens that the neighbour reads, tokens that the talker writes, and how often."""

AROUND = 64
"""Positions that are left for what stands around the document."""

ALONE, BESIDE = "alone", "beside a prefill"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """When the events of one run came, in seconds of the clock.

    Attributes:
        began: When the run was asked for.
        talker: The talker's tokens.
        neighbour: Ends of the neighbour's slices, each with the tokens that it has by then.
        read: The neighbour's first token; None without one.
    """

    began: float
    talker: tuple[float, ...]
    neighbour: tuple[tuple[float, int], ...]
    read: float | None

    @property
    def gaps(self) -> list[float]:
        """Seconds between two tokens of the talker, of which the first came while the neighbour
        had not read all; all of them where there is no neighbour.
        """
        until = self.talker[-1] if self.read is None else self.read
        return [later - one for one, later in pairwise(self.talker) if one < until]

    @property
    def slices(self) -> list[tuple[float, int]]:
        """Seconds and tokens of each of the neighbour's slices that the talker wrote beside."""
        first, last = self.talker[0], self.talker[-1]
        return [
            (later - one, tokens - before)
            for (one, before), (later, tokens) in pairwise(self.neighbour)
            if first <= one <= last
        ]


def measure(
    model: LocalModel, *, text: Path | None = None, count: int | None = None, progress: Progress
) -> Measured:
    """A row for the talker alone and one beside the neighbour, and the longest gap of the latter.

    The summary's longest gap is the median over the rounds of each round's longest.
    """
    (words,) = cut_passages(model, text, 1, min(NEIGHBOUR, model.max_positions - AROUND))
    document = model.text.decode(words)
    flows = {ALONE: _flow(model), BESIDE: _flow(model, document)}
    ways = {name: partial(_run, flow, model.device) for name, flow in flows.items()}
    rows = []
    for name, runs in in_turn(ways, count or ROUNDS).items():
        timings = [timing for _, timing in runs]
        row = _row(name, [seen for seen, _ in runs], timings)
        progress(
            f"{name}: longest gap {row['longest_gap_ms']:.0f} ms, median gap "
            f"{row['median_gap_ms']:.0f} ms; {said(timings)}"
        )
        rows.append(row)
    beside = rows[1]
    return rows, {
        "longest_gap_ms": beside["longest_gap_ms"],
        "worst_gap_ms": beside["worst_gap_ms"],
        "longest_gap_over_slice": beside["longest_gap_over_slice"],
        "longest_gap_alone_ms": rows[0]["longest_gap_ms"],
    }


def _flow(model: LocalModel, document: str = "") -> Workflow:
    """A talker, and beside it a neighbour that reads the document, where there is one."""
    write = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    agents = [Agent("talker", model, prompt="Tell a long story.", generate=write)]
    if document:
        reads = "{{ inputs.document }}"
        agents.append(Agent("neighbour", model, prompt=reads, generate={"max_new_tokens": 1}))
    inputs = {"document": InputSpec(type="text", default=document)}
    return Workflow("stall", agents, inputs=inputs if document else {})


def _run(flow: Workflow, device: torch.device) -> tuple[_Seen, Timing]:
    seen: list[_Seen] = []
    timing = timed(lambda: seen.append(anyio.run(_seen, flow)), device)
    return seen[0], timing


async def _seen(flow: Workflow) -> _Seen:
    began, talker, slices, read = perf_counter(), list[float](), list[tuple[float, int]](), None
    async with aclosing(flow.stream()) as events:
        async for event in events:
            now = perf_counter()
            match event:
                case TokenWritten(agent="talker"):
                    # After the last token there may be words that had waited for it.
                    talker += [now] if len(talker) < TOKENS else []
                case TokenWritten() if read is None:
                    read = now
                case PrefillProgress(agent="neighbour", done=done):
                    slices.append((now, done))
    return _Seen(began=began, talker=tuple(talker), neighbour=tuple(slices), read=read)


def _row(name: str, seen: Sequence[_Seen], timings: Sequence[Timing]) -> dict[str, Any]:
    longest = [max(run.gaps) for run in seen]
    row: dict[str, Any] = {
        "of": name,
        "tokens": len(seen[0].talker),
        "longest_gap_ms": _ms(median(longest)),
        "worst_gap_ms": _ms(max(longest)),
        "median_gap_ms": _ms(median(gap for run in seen for gap in run.gaps)),
        "gaps": min(len(run.gaps) for run in seen),
        "first_token_ms": _ms(median(run.talker[0] - run.began for run in seen)),
    }
    slices = [part for run in seen for part in run.slices]
    if slices:
        seconds = median(part for part, _ in slices)
        row |= {
            "slice_ms": _ms(seconds),
            "slice_tokens": median(tokens for _, tokens in slices),
            "longest_gap_over_slice": round(median(longest) / seconds, 2),
        }
    return {**row, **figures(timings)}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
