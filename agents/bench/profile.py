"""Two fine-tunes of a base, by a fixed recipe: how far its cache is from theirs, and what
recomputing buys.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

import torch

from unspoken.agents.bench import Files, Progress
from unspoken.agents.bench.finetune import KINDS, Kind, Recipe, finetune
from unspoken.agents.bench.forced import distance
from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.audit.answers import greedy
from unspoken.channels.data.rows import builtin_qa, f1, question_prompt, read_qa, sample
from unspoken.channels.finetunes.carry import carry_across
from unspoken.channels.finetunes.measure import ProfilePlan, clocked, trials_of
from unspoken.channels.finetunes.passages import Settings, Trial, arrival_of
from unspoken.channels.finetunes.profile import PREFIX, front_of
from unspoken.channels.finetunes.recompute import LayerRanges, named
from unspoken.channels.finetunes.search import (
    estimate,
    judge,
    layers_of,
    random_groups,
    search,
    thinned,
)
from unspoken.channels.kv.state import KVState

__all__ = ["measure"]

SETTINGS = Settings(search=4, judge=12)
QUESTIONS, SEEDS = 16, (1, 2, 3)
MARK, BOUND, STRONG = 2.78, 0.01, 0.03
"""DroidSpeak's shorter prefill (arXiv 2411.02820), the nats at which ours is told, and what reusing
all must cost.
"""

Row = dict[str, Any]


def measure(
    model: LocalModel, files: Files, progress: Progress
) -> tuple[list[Row], dict[str, Any]]:
    """A row per fine-tune and choice of layers; figures are the full fine-tune's, the LoRA's end in
    ``_lora``.
    """
    rows: list[Row] = []
    summary: dict[str, Any] = {}
    for kind in KINDS:
        found, figures = _measured(model, kind, files, progress)
        rows += found
        suffix = "" if kind == "full" else f"_{kind}"
        summary |= {f"{name}{suffix}": value for name, value in figures.items()}
    return rows, summary


def _measured(
    base: LocalModel, kind: Kind, files: Files, progress: Progress
) -> tuple[list[Row], dict[str, Any]]:
    tuned = finetune(base, Recipe.of(kind), lambda stage, part: progress(f"{stage}: {part:.0%}"))
    trials, _ = trials_of(files.text, tuned, SETTINGS)
    looked, judged = trials[: SETTINGS.search], trials[SETTINGS.search :]
    progress(f"{kind}: search")
    found = search(base, tuned, looked)
    layers = len(tuned.geometry.layers)
    front = thinned(
        front_of((layer_ranges, layers_of(layer_ranges), kl) for layer_ranges, kl in found.items())
    )
    front = list(dict.fromkeys([(), *front, ((0, layers),)]))
    progress(f"{kind}: judge {len(front)} choices of layers")
    scores = judge(base, tuned, judged, front, SETTINGS)
    drawn = _drawn(front, layers)
    progress(f"{kind}: judge {len(set(drawn.values()))} random choices")
    others = judge(base, tuned, judged, list(set(drawn.values())), replace(SETTINGS, prompts=()))
    progress(f"{kind}: time")
    speeds = clocked(base, tuned, judged, front, ProfilePlan(repeats=5), lambda stage, part: None)
    progress(f"{kind}: ask")
    asked = _asked(base, tuned, front, files)
    rows = []
    for layer_ranges in front:
        row: Row = {
            "fine_tune": kind,
            "layers": named(layer_ranges),
            "share": round(layers_of(layer_ranges) / layers, 3),
        }
        for place, pairs in scores[layer_ranges].items():
            one = estimate(pairs)
            row |= {f"kl {place}": one.kl, f"high {place}": one.high}
            row |= {"top1": one.top1} if place == PREFIX else {}
        row |= {
            f"random {seed}": mean(kl for kl, _ in others[drawn[layer_ranges, seed]][PREFIX])
            for seed in SEEDS
            if (layer_ranges, seed) in drawn
        }
        rows.append(row | {"speedup": round(speeds[layer_ranges], 3), **asked[layer_ranges]})
    figures = _figures(rows)
    controls = [{"fine_tune": kind, **row} for row in _controls(tuned, judged, asked)]
    return rows + controls, figures


def _drawn(
    front: Sequence[LayerRanges], layers: int
) -> Mapping[tuple[LayerRanges, int], LayerRanges]:
    """Random groups of the same sizes as those of every point that lies between the ends, by point
    and seed.
    """
    drawn = {}
    for seed in SEEDS:
        rng = random.Random(seed)
        for layer_ranges in front:
            if 0 < layers_of(layer_ranges) < layers:
                drawn[layer_ranges, seed] = random_groups(layer_ranges, layers, rng)
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
    tuned: LocalModel, trials: Sequence[Trial], asked: Mapping[Any, Row]
) -> Iterator[Row]:
    """Text, another example's message, and no message, of as many forced tokens."""
    none, other = [], []
    for number, trial in enumerate(trials):
        full = _logs(tuned, tuned.read(trial.ids), trial.ids, trial.forced)
        bare = trial.ids[: trial.at]
        none.append(distance(full, _logs(tuned, tuned.read(bare), bare, trial.forced)))
        theirs = trials[(number + 1) % len(trials)].ids
        other.append(distance(full, _logs(tuned, tuned.read(theirs), theirs, trial.forced)))
    for name, pairs in (("another example's message", other), ("no message", none)):
        kl, top1 = (mean(column) for column in zip(*pairs, strict=True))
        yield {"layers": name, f"kl {PREFIX}": kl, "top1": top1, **asked.get(name, {})}
    yield {"layers": "text", f"kl {PREFIX}": 0.0, "top1": 1.0, "speedup": 1.0, **asked["text"]}


def _logs(
    model: LocalModel, state: KVState, ids: Sequence[int], forced: Sequence[int]
) -> torch.Tensor:
    before = state.slice(0, state.stop - 1)
    tokens = model.tensor((ids[-1], *forced[:-1]))
    return model.logits(tokens, [before]).float().log_softmax(dim=-1)


@torch.no_grad()
def _asked(
    base: LocalModel, tuned: LocalModel, front: Sequence[LayerRanges], files: Files
) -> dict[Any, Row]:
    """Loss of the right answer, F1 of the receiver's own, and KL to text over both, by choice of
    layers and control.
    """
    rows = sample(read_qa(files.qa), QUESTIONS) if files.qa else builtin_qa(QUESTIONS, seed=9_001)
    frame = tuned.frame("chat")
    starts = sorted({first for layer_ranges in front for first, _ in layer_ranges if first})
    found: dict[Any, list[tuple[float, float, float, float]]] = {}
    contexts = [(*frame.before, *tuned.words(row.context)[0]) for row in rows]
    for number, (row, ids) in enumerate(zip(rows, contexts, strict=True)):
        question = (*tuned.words(question_prompt(row.question))[0], *frame.ask)
        trial = Trial(ids, len(frame.before), ())
        arrival = arrival_of(trial, base.read(ids, starts))
        state = arrival.message.state
        assert state is not None
        ways: dict[Any, list[KVState]] = {
            "text": [tuned.read(ids)],
            "another example's message": [tuned.read(contexts[(number + 1) % len(rows)])],
            "no message": [tuned.read(frame.before)],
        }
        for layer_ranges in front:
            ways[layer_ranges] = list(
                carry_across(arrival, tuned, state, layer_ranges, 0, 0.0, "").spliced
            )
        answer = tuned.words(row.answers[0])[0]
        full: torch.Tensor | None = None  # text comes first
        for way, states in ways.items():
            logs = _after(tuned, states, (*question, *answer))
            full = logs if full is None else full
            loss = -logs[-len(answer) :].gather(1, tuned.tensor(answer)[:, None]).mean()
            said = f1(greedy(tuned, states, question, 12), row.answers)
            found.setdefault(way, []).append((float(loss), said, *distance(full, logs)))
    return {
        way: {
            "answer_loss": mean(one[0] for one in asked),
            "f1": mean(one[1] for one in asked),
            "qa_kl": mean(one[2] for one in asked),
            "qa_top1": mean(one[3] for one in asked),
            "questions": len(asked),
        }
        for way, asked in found.items()
    }


def _after(tuned: LocalModel, states: Sequence[KVState], ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities of every id but the first, (ids - 1, vocabulary)."""
    return tuned.logits(tuned.tensor(ids[:-1]), states).float().log_softmax(dim=-1)
