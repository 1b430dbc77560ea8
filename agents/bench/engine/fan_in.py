"""What several senders on one document cost their receiver: distance to text, and time.

A reader reads a document of 512 tokens. Writers continue its cache, each with its own task, and a
judge reads what they wrote. The judge's next words are forced. Its distribution after each is
compared with that of text, where it computes every token itself: KL(text || other) in nats. Beside
it stands the time to its first token. The judge has the document first, or in its place the whole
context of one writer, which it then takes exactly.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.engine import panel
from unspoken.agents.bench.engine.panel import JUDGE, Case, Channels, Outcome, Sender
from unspoken.agents.bench.engine.share import Timing, figures, median_seconds, timed_in_turn
from unspoken.agents.bench.forced import means, recomputed, rotated, score
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.engines.base import Sampling, TurnRequest
from unspoken.agents.engines.turn import drive_turn
from unspoken.agents.models.model import LocalModel
from unspoken.agents.planning.planner import plan_workflow
from unspoken.agents.prompts.context import ChatTurn
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.base import Channel
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

DOCUMENT, COUNTS, SIZES, FORCED, ROUNDS = 512, (2, 4), (64, 256), 32, 3
GROUPS = SCALES["fan_in"].rows
BUDGET = 50.0
TEXT, DEFAULT = "text", "the default plan"


def measure(
    model: LocalModel, *, text: Path | None = None, count: int | None = None, progress: Progress
) -> Measured:
    """Rows per number of senders, size of their outputs and condition; figures at four senders."""
    documents = cut_passages(model, text, count or GROUPS, DOCUMENT)
    progress(f"the writers write {max(SIZES)} tokens each")
    outputs = panel.written(model, documents, max(COUNTS), max(SIZES))
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        groups = [
            panel.senders_of(model, ids, [words[:size] for words in each])
            for ids, each in zip(documents, outputs, strict=True)
        ]
        for senders in COUNTS:
            for whole in (False, True):
                measured = _rows(model, [group[: senders + 1] for group in groups], size, whole)
                rows += measured
                told = ", ".join(f"{row['way']} {row['mean_kl']:.4f}" for row in measured)
                progress(f"{senders} senders, {size} tokens each: {told}")
    return rows, _summary(rows)


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The worst of the default plan over all sizes."""
    most = max(COUNTS)
    four = [row for row in rows if row["senders"] == most and row["way"] == DEFAULT]
    return {
        f"kl_default_{most}": max(row["mean_kl"] for row in four),
        f"seconds_over_text_{most}": max(row["over_text"] for row in four),
    }


def _rows(
    model: LocalModel, groups: Sequence[Sequence[Sender]], size: int, whole: bool
) -> list[dict[str, Any]]:
    """The rows of one number of senders.

    Args:
        model: The model of all agents.
        groups: Per document, its reader and its writers.
        size: Tokens of each output.
        whole: Whether the judge has one writer's whole context, in place of the document.
    """
    spec = panel.workflow(len(groups[0]) - 1, size, whole=whole)
    cases = [
        panel.case_of(model, spec, group, forced=FORCED, seed=number)
        for number, group in enumerate(groups)
    ]
    conditions = _conditions(model, spec, size, whole)
    outcomes = {
        name: [panel.carried(model, case, case.by(channels)) for case in cases]
        for name, channels in conditions.items()
    }
    timings = _timed(model, cases[0], conditions)
    if not whole:
        readers = [group[0] for group in groups]
        outcomes |= _controls(model, cases, readers, conditions["spliced"])
    at_text = median_seconds(timings[TEXT])
    rows = []
    for name, given in outcomes.items():
        pairs = list(zip(cases, given, strict=True))
        row: dict[str, Any] = {
            "senders": len(groups[0]) - 1,
            "output_tokens": size,
            "way": name,
            **means(score(case.full, one.logs) for case, one in pairs),
            "context_tokens": len(cases[0].ids),
            "computed_share": round(mean(one.computed / len(case.ids) for case, one in pairs), 3),
        }
        if name in timings:
            row["over_text"] = round(median_seconds(timings[name]) / at_text, 3)
            row |= figures(timings[name])
        rows.append(row | {"documents": len(cases), "forced_tokens": FORCED})
    return rows


def _conditions(
    model: LocalModel, spec: WorkflowSpec, size: int, whole: bool
) -> Mapping[str, Channels]:
    """The channels of the judge's edges; the first of them is continued where it is a cache."""
    first, *others = (n for n, edge in enumerate(spec.edges) if edge.to == JUDGE)
    cache = SameModelCacheChannel()

    def beside(channel: Channel) -> Channels:
        return {first: cache, **dict.fromkeys(others, channel)}

    texts: Channels = dict.fromkeys((first, *others), TextChannel())
    if whole:
        return {
            TEXT: texts,
            "one exact, others spliced": beside(cache),
            "one exact, others read again": beside(TextChannel()),
        }
    return {
        TEXT: texts,
        DEFAULT: plan_workflow(spec, dict.fromkeys(spec.agents, model)).channels,
        "spliced": beside(cache),
        "spliced, first quarter": beside(SameModelCacheChannel(sink=size // 4)),
        "spliced, deviating quarter": beside(SameModelCacheChannel(sink=0, deviation=0.25)),
        f"spliced, budget {BUDGET:g} ms each": beside(SameModelCacheChannel(budget=BUDGET)),
        "read again": beside(TextChannel()),
    }


def _controls(
    model: LocalModel, cases: Sequence[Case], readers: Sequence[Sender], spliced: Channels
) -> Mapping[str, list[Outcome]]:
    """What would be lost if the caches carried nothing of these outputs; the document stays."""
    outcomes = [
        panel.carried(model, case, panel.swapped(case.by(spliced), other.placed))
        for case, other in zip(cases, rotated(cases), strict=True)
    ]
    builder, alone = model.context_builder, []
    for case, reader in zip(cases, readers, strict=True):
        earlier = reader.context
        ids = (
            builder.compose([ChatTurn("user", (panel.PROMPT,))], earlier=earlier).ids
            + builder.ask()
        )
        alone.append(Outcome(recomputed(model, ids, case.forced), len(ids)))
    return {"another example's outputs": outcomes, "no outputs": alone}


def _timed(
    model: LocalModel, case: Case, conditions: Mapping[str, Channels]
) -> Mapping[str, Sequence[Timing]]:
    """The time to the first token by every condition in turn."""
    sampling = Sampling(max_tokens=1)
    turns = {
        name: partial(
            drive_turn,
            model,
            TurnRequest(ids=case.ids, inbound=case.by(channels), sampling=sampling),
        )
        for name, channels in conditions.items()
    }
    return timed_in_turn(turns, ROUNDS, model.device)
