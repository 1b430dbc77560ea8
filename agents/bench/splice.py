"""How far a spliced cache is from a full recompute of the same tokens, with its controls.

A message of 256 tokens is computed under the sharer's own system prompt and handed to a receiver
with another one. The next 40 tokens are forced, and the receiver's distribution after each is
compared with that of a full recompute: KL(full || spliced) in nats, and whether both put the same
token first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from unspoken.agents.bench import Files, Progress
from unspoken.agents.bench.forced import asked, carried, distance, forced_logs, recomputed, without
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scene import Scene
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn
from unspoken.channels.base import Channel
from unspoken.channels.message import Message
from unspoken.channels.same_model import SameModelCacheChannel

__all__ = ["measure"]

PASSAGES, TOKENS, FORCED, BATCH = 20, 256, 40, 10
SHARER = "You read reports for the harbour office and keep their facts ready for colleagues."
RECEIVER = (
    "You are a careful assistant who answers from what others have read, and makes nothing up."
)
PROMPT = "Go on with the text."


@dataclass(frozen=True, slots=True)
class _Case:
    """One message in its receiver's context, with the tokens forced after it and what a full
    recompute says.
    """

    scene: Scene
    forced: tuple[int, ...]
    full: Tensor


def measure(
    model: LocalModel, files: Files, progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows per kind of message and way, and the figures of the default repair."""
    rows: list[dict[str, Any]] = []
    for share, make in (("prompt", _shared_prompts), ("output", _shared_outputs)):
        progress(f"{share}: computing the messages and their full recompute")
        cases = make(model, files)
        for name, way in _ways(model, cases).items():
            scores = [distance(case.full, way(index, case)) for index, case in enumerate(cases)]
            row = {
                "share": share,
                "way": name,
                "mean_kl": mean(kl for kl, _ in scores),
                "top1": mean(top for _, top in scores),
                "passages": len(cases),
                "message_tokens": TOKENS,
                "forced_tokens": FORCED,
            }
            rows.append(row)
            progress(f"{share}, {name}: KL {row['mean_kl']:.6f}, top-1 {row['top1']:.3f}")
    return rows, _summary(rows)


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    at = {(row["share"], row["way"]): row for row in rows}
    prompt, output = at["prompt", "sink 4"], at["output", "sink 4"]
    return {
        "mean_kl": prompt["mean_kl"],
        "top1": prompt["top1"],
        "mean_kl_output": output["mean_kl"],
        "top1_output": output["top1"],
        "all_recomputed_kl": max(
            at[share, "all recomputed"]["mean_kl"] for share in ("prompt", "output")
        ),
    }


def _shared_prompts(model: LocalModel, files: Files) -> list[_Case]:
    """Passages of text as the sharer's prompt; their own continuation is forced."""
    passages = cut_passages(model, files.text, PASSAGES, TOKENS + FORCED)
    return [_case(model, ids[:TOKENS], ids[TOKENS:], "user") for ids in passages]


def _shared_outputs(model: LocalModel, files: Files) -> list[_Case]:
    """Text the sharer's model wrote itself, of which the message is the first part and the rest is
    forced.
    """
    starts = cut_passages(model, files.text, PASSAGES, 48)
    tasks = [
        f"Write a long report that starts like this: {model.text.decode(ids)}" for ids in starts
    ]
    composer = model.context_builder
    contexts = [composer.compose([ChatTurn("user", (prompt,))], system=SHARER) for prompt in tasks]
    prompts = [context.ids + composer.ask(context) for context in contexts]
    written = [
        ids
        for first in range(0, PASSAGES, BATCH)
        for ids in _write(model, prompts[first : first + BATCH], TOKENS + FORCED)
    ]
    return [
        _case(model, ids[:TOKENS], ids[TOKENS:], "assistant", prompt)
        for ids, prompt in zip(written, tasks, strict=True)
    ]


@torch.no_grad()
def _write(
    model: LocalModel, prompts: Sequence[tuple[int, ...]], count: int
) -> list[tuple[int, ...]]:
    """Exactly `count` sampled tokens after each prompt, in one batch of transformers' generate
    (seeded).
    """
    torch.manual_seed(0)
    longest = max(map(len, prompts))
    pad = model.tokenizer.pad_token_id or 0
    padded = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    hf: Any = model.hf
    written = hf.generate(
        input_ids=torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        pad_token_id=pad,
    )
    return [tuple(row[longest:].tolist()) for row in written]


def _case(
    model: LocalModel, words: tuple[int, ...], forced: tuple[int, ...], role: str, task: str = ""
) -> _Case:
    scene = Scene.make(
        model,
        words,
        prompt=PROMPT,
        sharer_system=SHARER,
        receiver_system=RECEIVER,
        role=role,
        sharer_prompt=task,
    )
    return _Case(scene, forced, recomputed(model, asked(model, scene), forced))


Way = Callable[[int, _Case], Tensor]


def _ways(model: LocalModel, cases: Sequence[_Case]) -> dict[str, Way]:
    def spliced(channel: Channel) -> Way:
        return lambda index, case: carried(model, case.scene, channel, case.forced)

    def none(index: int, case: _Case) -> Tensor:
        return without(model, PROMPT, RECEIVER, case.forced)

    def other(index: int, case: _Case) -> Tensor:
        theirs = cases[(index + 1) % len(cases)].scene.message
        theirs_here = _with_state_of(case, theirs).scene
        return carried(model, theirs_here, SameModelCacheChannel(share="prompt"), case.forced)

    def text(index: int, case: _Case) -> Tensor:
        return recomputed(model, asked(model, case.scene), case.forced)

    return {
        "text": text,
        "all recomputed": spliced(SameModelCacheChannel(sink=10**6)),
        "sink 64": spliced(SameModelCacheChannel(sink=64)),
        "sink 16": spliced(SameModelCacheChannel(sink=16)),
        "sink 4": spliced(SameModelCacheChannel()),
        "no repair": spliced(SameModelCacheChannel(sink=0)),
        "keys not moved": lambda index, case: _unmoved(model, case),
        "another example's message": other,
        "no message": none,
    }


def _with_state_of(case: _Case, theirs: Message) -> _Case:
    """The same tokens in the receiver's context, but what is carried for them is another message's
    state.
    """
    own = case.scene.message.segments[0]
    delta = theirs.segments[0].position - own.position
    placed = tuple(
        (theirs, replace(span, source=span.source + delta)) for _, span in case.scene.context.placed
    )
    context = replace(case.scene.context, placed=placed)
    return replace(case, scene=replace(case.scene, message=theirs, context=context))


def _unmoved(model: LocalModel, case: _Case) -> Tensor:
    """What naive reuse does: the sharer's keys as they are, at the receiver's positions."""
    ids = asked(model, case.scene)
    (span,) = case.scene.context.spans(case.scene.message)
    theirs = case.scene.message.state
    if theirs is None:
        raise RuntimeError("the scene's message has no state")
    piece = theirs.slice(span.source, span.source + span.length)
    delta = span.at - span.source
    layers = tuple(replace(layer, first=layer.first + delta) for layer in piece.layers)
    moved = replace(piece, layers=layers, start=piece.start + delta, stop=piece.stop + delta)
    own = [case.scene.history[1]] if case.scene.history else []
    covered = {p for state in (*own, moved) for p in range(state.start, state.stop)}
    missing = [p for p in range(len(ids)) if p not in covered]
    new = model.tensor([ids[position] for position in missing])
    state = model.prefill(new, [*own, moved], model.tensor(missing)).state
    return forced_logs(model, state, ids[-1], case.forced)
