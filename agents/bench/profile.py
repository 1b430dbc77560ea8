"""Two fine-tunes by a fixed recipe: how far the base's cache is from theirs, what repair buys."""

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.finetune import KINDS, Kind, Recipe, finetune
from unspoken.agents.bench.forced import means, recomputed, rotated, score
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.audit.answers import greedy
from unspoken.channels.data.rows import QaRow, builtin_qa, f1, question_prompt, read_qa, sample
from unspoken.channels.finetunes.carry import carry_across
from unspoken.channels.finetunes.measure import ProfilePlan, clocked, trials_of
from unspoken.channels.finetunes.passages import Settings, Trial, arrival_of
from unspoken.channels.finetunes.profile import PREFIX
from unspoken.channels.finetunes.recompute import LayerRanges, layers_of, named
from unspoken.channels.finetunes.search import (
    assess,
    choices_of,
    entries_of,
    estimate,
    random_ranges,
    search,
)
from unspoken.channels.kv.state import KVState

SETTINGS = Settings(search=4, assess=12)
QUESTIONS, SEEDS = SCALES["profile"].rows, (1, 2, 3)
MARK, BOUND, STRONG = 2.78, 0.01, 0.03
"""DroidSpeak's speedup of a prefill (arXiv 2411.02820), the KL in nats at which ours is told, and
the KL that reusing all layers must have for the figures to mean something.
"""
OTHER, NONE = "another example's message", "no message"

Row = dict[str, Any]
Condition = LayerRanges | str


def measure(
    model: LocalModel,
    *,
    text: Path | None = None,
    qa: Path | None = None,
    count: int | None = None,
    only: Collection[str] = (),
    progress: Progress,
) -> Measured:
    """A row per fine-tune and choice of layers; the LoRA's figures end in ``_lora``."""
    rows: list[Row] = []
    wanted = count or QUESTIONS
    asked = sample(read_qa(qa), wanted) if qa else builtin_qa(wanted, seed=9_001)
    summary: dict[str, Any] = {}
    for kind in KINDS:
        if only and kind not in only:
            continue
        measured, figures = _measured(model, kind, text, asked, progress)
        rows += measured
        suffix = "" if kind == "full" else f"_{kind}"
        summary |= {f"{name}{suffix}": value for name, value in figures.items()}
    return rows, summary


def _measured(
    base: LocalModel, kind: Kind, text: Path | None, questions: Sequence[QaRow], progress: Progress
) -> Measured:
    tuned = finetune(base, Recipe.of(kind), lambda stage, part: progress(f"{stage}: {part:.0%}"))
    trials, _ = trials_of(text, tuned, SETTINGS)
    assessed = trials[SETTINGS.search :]
    layers = len(tuned.geometry.layers)
    progress(f"{kind}: search")
    front = choices_of(search(base, tuned, trials[: SETTINGS.search]), layers)
    progress(f"{kind}: assess {len(front)} choices of layers")
    scores = assess(base, tuned, assessed, front, SETTINGS)
    drawn = _drawn(front, layers)
    progress(f"{kind}: assess {len(set(drawn.values()))} random choices")
    others = assess(base, tuned, assessed, list(set(drawn.values())), replace(SETTINGS, prompts=()))
    progress(f"{kind}: time")
    speeds = clocked(base, tuned, assessed, front, ProfilePlan(repeats=5), lambda stage, part: None)
    progress(f"{kind}: ask")
    asked = _asked(base, tuned, front, questions)
    rows = []
    for layer_ranges in front:
        row: Row = {
            "fine_tune": kind,
            "layers": named(layer_ranges),
            "share": round(layers_of(layer_ranges) / layers, 3),
        }
        for place, pairs in scores[layer_ranges].items():
            figures = estimate(pairs)
            row |= {f"kl {place}": figures.kl, f"high {place}": figures.high}
            row |= {"top1": figures.top1} if place == PREFIX else {}
        row |= {
            f"random {seed}": mean(kl for kl, _ in others[drawn[layer_ranges, seed]][PREFIX])
            for seed in SEEDS
            if (layer_ranges, seed) in drawn
        }
        rows.append(row | {"speedup": round(speeds[layer_ranges], 3), **asked[layer_ranges]})
    controls = [{"fine_tune": kind, **row} for row in _controls(tuned, assessed, asked)]
    return rows + controls, _figures(rows)


def _drawn(
    front: Sequence[LayerRanges], layers: int
) -> Mapping[tuple[LayerRanges, int], LayerRanges]:
    """For every choice between the ends and every seed, random ranges of the same sizes."""
    drawn = {}
    for seed in SEEDS:
        rng = random.Random(seed)
        for layer_ranges in front:
            if 0 < layers_of(layer_ranges) < layers:
                drawn[layer_ranges, seed] = random_ranges(layer_ranges, layers, rng)
    return drawn


def _figures(rows: Sequence[Row]) -> dict[str, Any]:
    key = f"kl {PREFIX}"
    reuse = next(row for row in rows if not row["share"])[key]
    inner = [row for row in rows if 0 < row["share"] < 1]
    near = [row["speedup"] for row in rows if row[key] <= BOUND and row["share"] < 1]
    fast = [row[key] for row in rows if row["speedup"] >= MARK]
    by_seed = [
        mean(row[key] for row in inner) < mean(row[f"random {seed}"] for row in inner)
        for seed in SEEDS
        if inner
    ]
    worse = [row[key] <= row[f"random {seed}"] for row in inner for seed in SEEDS]
    return {
        "reuse_all_kl": reuse,
        "strong_enough": reuse >= STRONG,
        "prefill_speedup_at_kl_0_01": max(near, default=1.0),  # text, which is exact
        "kl_at_speedup_2_78": min(fast, default=None),
        "beats_reuse_all": bool(inner) and all(row[key] < reuse for row in inner),
        "beats_random_groups": bool(by_seed) and all(by_seed),
        "random_groups_no_better": round(mean(worse), 3) if worse else None,
    }


@torch.no_grad()
def _controls(
    tuned: LocalModel, trials: Sequence[Trial], asked: Mapping[Condition, Row]
) -> Iterator[Row]:
    """Another example's message, no message, and text, of as many forced tokens."""
    full = [recomputed(tuned, trial.ids, trial.forced) for trial in trials]
    contexts = {OTHER: [trial.ids for trial in rotated(trials)]}
    contexts[NONE] = [trial.ids[: trial.at] for trial in trials]
    for name, shown in contexts.items():
        logs = [recomputed(tuned, ids, row.forced) for ids, row in zip(shown, trials, strict=True)]
        figures = means(map(score, full, logs))
        kl, top1 = figures["mean_kl"], figures["top1"]
        yield {"layers": name, f"kl {PREFIX}": kl, "top1": top1, **asked[name]}
    yield {"layers": "text", f"kl {PREFIX}": 0.0, "top1": 1.0, "speedup": 1.0, **asked["text"]}


@torch.no_grad()
def _asked(
    base: LocalModel, tuned: LocalModel, front: Sequence[LayerRanges], rows: Sequence[QaRow]
) -> dict[Condition, Row]:
    """What each choice of layers, and each control, makes of questions.

    The loss of the right answer, the F1 of the receiver's own, and the KL to text over both.
    """
    frame = tuned.frame("chat")
    contexts = [(*frame.before, *tuned.words(row.context)[0]) for row in rows]
    figures: dict[Condition, list[Row]] = {}
    for row, ids, other in zip(rows, contexts, rotated(contexts), strict=True):
        question = (*tuned.words(question_prompt(row.question))[0], *frame.ask)
        answer = tuned.words(row.answers[0])[0]
        full: torch.Tensor | None = None  # text comes first
        for condition, states in _states(base, tuned, front, ids, other).items():
            tail = tuned.tensor((*question, *answer)[:-1])
            logs = tuned.logits(tail, states).float().log_softmax(dim=-1)
            full = logs if full is None else full
            loss = -logs[-len(answer) :].gather(1, tuned.tensor(answer)[:, None]).mean()
            said = f1(greedy(tuned, states, question, 12), row.answers)
            kl, top1 = score(full, logs)
            line = {"answer_loss": float(loss), "f1": said, "qa_kl": kl, "qa_top1": top1}
            figures.setdefault(condition, []).append(line)
    return {
        condition: {key: mean(line[key] for line in lines) for key in lines[0]}
        | {"questions": len(lines)}
        for condition, lines in figures.items()
    }


def _states(
    base: LocalModel,
    tuned: LocalModel,
    front: Sequence[LayerRanges],
    ids: tuple[int, ...],
    other: tuple[int, ...],
) -> dict[Condition, list[KVState]]:
    """The receiver's state of a message by every choice of layers and in every control."""
    before = tuned.frame("chat").before
    arrival = arrival_of(Trial(ids, len(before), ()), base.read(ids, entries_of(front)))
    states: dict[Condition, list[KVState]] = {
        "text": [tuned.read(ids)],
        OTHER: [tuned.read(other)],
        NONE: [tuned.read(before)],
    }
    for layer_ranges in front:
        carry = carry_across(arrival, tuned, layer_ranges=layer_ranges)
        states[layer_ranges] = [piece.state for piece in carry.pieces]
    return states
