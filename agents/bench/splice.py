"""How far a spliced cache is from a full recompute of the same tokens, with its controls.

A message of 256 tokens is computed under the sharer's own system prompt and handed to a receiver
with another one. The next 40 tokens are forced. The receiver's distribution after each is
compared with that of a full recompute: KL(full || spliced) in nats, and whether both put the same
token first.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.forced import Case, means, prefilled, rotated, score
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.bench.turns import generate
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.same_model import SameModelCacheChannel

PASSAGES, TOKENS, FORCED, BATCH = SCALES["splice"].rows, 256, 40, 10
SHARES = SCALES["splice"].parts
SHARER = "You read reports for the harbour office and keep their facts ready for colleagues."
RECEIVER = (
    "You are a careful assistant who answers from what others have read, and makes nothing up."
)
PROMPT = "Go on with the text."


def measure(
    model: LocalModel,
    *,
    text: Path | None = None,
    count: int | None = None,
    only: Collection[str] = SHARES,
    progress: Progress,
) -> Measured:
    """Rows per kind of message and condition, and the figures of the default repair."""
    rows: list[dict[str, Any]] = []
    makers = {"prompt": _shared_prompts, "output": _shared_outputs}
    for share in only:
        progress(f"{share}: computing the messages and their full recompute")
        cases = makers[share](model, text, count or PASSAGES)
        full = [case.full for case in cases]
        for name, logs in _conditions(cases).items():
            row = {
                "share": share,
                "way": name,
                **means(map(score, full, logs)),
                "passages": len(cases),
                "message_tokens": TOKENS,
                "forced_tokens": FORCED,
            }
            rows.append(row)
            progress(f"{share}, {name}: KL {row['mean_kl']:.6f}, top-1 {row['top1']:.3f}")
    return rows, _summary(rows)


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    by_condition = {(row["share"], row["way"]): row for row in rows}
    summary: dict[str, Any] = {}
    for share, suffix in (("prompt", ""), ("output", "_output")):
        if default := by_condition.get((share, "sink 4")):
            summary[f"mean_kl{suffix}"] = default["mean_kl"]
            summary[f"top1{suffix}"] = default["top1"]
    recomputed = [row["mean_kl"] for row in rows if row["way"] == "all recomputed"]
    return summary | {"all_recomputed_kl": max(recomputed)}


def _shared_prompts(model: LocalModel, text: Path | None, cases: int) -> list[Case]:
    """Passages of text as the sharer's prompt; their own continuation is forced."""
    passages = cut_passages(model, text, cases, TOKENS + FORCED)
    return [_case(model, ids, "user") for ids in passages]


def _shared_outputs(model: LocalModel, text: Path | None, cases: int) -> list[Case]:
    """Text that the sharer's model wrote: the message is its first part, the rest is forced."""
    starts = cut_passages(model, text, cases, 48)
    tasks = [
        f"Write a long report that starts like this: {model.text.decode(ids)}" for ids in starts
    ]
    builder = model.context_builder
    contexts = [builder.compose([ChatTurn("user", (task,))], system=SHARER) for task in tasks]
    prompts = [context.ids + builder.ask() for context in contexts]
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}
    # No template quotes a marker as words, and a random model would write some.
    sampling["suppress_tokens"] = sorted(model.tokenizer.all_special_ids) or None
    written: list[tuple[int, ...]] = []
    count = TOKENS + FORCED
    for first in range(0, cases, BATCH):
        torch.manual_seed(0)
        batch = prompts[first : first + BATCH]
        written += generate(model, batch, count, min_new_tokens=count, **sampling)
    return [_case(model, ids, "assistant", task) for ids, task in zip(written, tasks, strict=True)]


def _case(model: LocalModel, ids: tuple[int, ...], role: str, task: str = "") -> Case:
    return Case.make(
        model,
        ids[:TOKENS],
        ids[TOKENS:],
        prompt=PROMPT,
        sharer_system=SHARER,
        receiver_system=RECEIVER,
        role=role,
        sharer_prompt=task,
    )


def _conditions(cases: Sequence[Case]) -> dict[str, Iterable[Tensor]]:
    """Ways to hand the message over, and the controls: the forced distributions of every case."""

    def spliced(sink: int, case: Case) -> Tensor:
        return case.carried(SameModelCacheChannel(sink=sink))

    default = partial(spliced, 4)
    return {
        "text": map(Case.text, cases),
        "all recomputed": map(partial(spliced, 10**6), cases),
        "sink 64": map(partial(spliced, 64), cases),
        "sink 16": map(partial(spliced, 16), cases),
        "sink 4": map(default, cases),
        "no repair": map(partial(spliced, 0), cases),
        "keys not moved": map(_unmoved, cases),
        "another example's message": map(default, map(_swapped, cases, rotated(cases))),
        "no message": map(Case.without, cases),
    }


def _swapped(case: Case, other: Case) -> Case:
    """The same tokens in the receiver's context, with another message's state for them."""
    message = other.scene.message
    delta = message.segments[0].position - case.scene.message.segments[0].position
    placed = tuple(
        (message, replace(span, source=span.source + delta))
        for _, span in case.scene.context.placed
    )
    context = replace(case.scene.context, placed=placed)
    return replace(case, scene=replace(case.scene, message=message, context=context))


def _unmoved(case: Case) -> Tensor:
    """What naive reuse does: the sharer's keys as they are, at the receiver's positions."""
    scene = case.scene
    (span,) = scene.context.spans(scene.message)
    piece = scene.message.require_state().slice(span.source, span.source + span.length)
    delta = span.at - span.source
    layers = tuple(
        LayerState(layer.keys, layer.values, layer.first + delta) for layer in piece.layers
    )
    moved = replace(piece, layers=layers, start=piece.start + delta, stop=piece.stop + delta)
    states = [scene.history.state, moved] if scene.history else [moved]
    covered = {place for state in states for place in range(state.start, state.stop)}
    missing = [place for place in range(len(scene.ids)) if place not in covered]
    return case.over(prefilled(case.model, scene.ids, states, missing))
