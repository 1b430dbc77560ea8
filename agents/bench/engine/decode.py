"""Greedy decoding and prefill against transformers, and a continuation against text.

Both must write the same tokens; each is timed too, in turn.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from unspoken.agents.bench import DEFAULT_SHARER, Measured, Progress
from unspoken.agents.bench.engine.baselines import Plain
from unspoken.agents.bench.engine.share import (
    Timing,
    figures,
    median_seconds,
    said,
    timed,
    timed_in_turn,
)
from unspoken.agents.bench.engine.team import Ids
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.bench.scene import Scene
from unspoken.agents.engines.base import Carried, Sampling, TurnRequest
from unspoken.agents.engines.turn import drive_turn
from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import ModelReferenceError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

PROMPTS, TOKENS, NEW, WINDOW = SCALES["decode"].rows, 96, 48, 32
PREFILL, ROUNDS = 512, 7

OTHERS = (DEFAULT_SHARER,)
"""Models that are compared besides, where they are installed."""

OURS, THEIRS = "ours", "transformers"


def measure(
    model: LocalModel, *, text: Path | None = None, count: int | None = None, progress: Progress
) -> Measured:
    """Rows per model, and whether all tokens are equal; the speeds are those of the given model.

    A model that is not available has a row that says so.
    """
    prompts = count or PROMPTS
    passages = cut_passages(model, text, prompts, TOKENS)
    rows = [_decoded(model, passages, model.ref or "the model", progress)]
    for ref in OTHERS:
        if ref != model.ref:
            rows.append(_other(ref, model, text, prompts, progress))
    rows.append(
        _decoded(_tiny_gemma(model), passages, f"random Gemma 3, window {WINDOW}", progress)
    )
    equal = all(row["equal"] == row["prompts"] for row in rows if "equal" in row)
    read = _prefilled(model, text, progress)
    same = sum(_continuation_equals_text(model, ids) for ids in passages)
    progress(f"continuation equals text on {same} of {len(passages)}")
    rows.append({"of": "continuation against text", "prompts": len(passages), "equal": same})
    return [*rows, *read], {
        "speed_vs_generate": rows[0]["speed_vs_generate"],
        "prefill_vs_transformers": read[1]["ours_is_faster"],
        "tokens_equal": equal,
        "continuation_equals_text": same == len(passages),
    }


def _other(
    ref: str, model: LocalModel, text: Path | None, prompts: int, progress: Progress
) -> dict[str, Any]:
    """The row of another model; where it is not available, why not."""
    try:
        other = LocalModel.load(ref, dtype=model.dtype, device=model.device)
    except ModelReferenceError as error:
        progress(f"{ref} is left out: {error}")
        return {"of": ref, "left_out": str(error)}
    return _decoded(other, cut_passages(other, text, prompts, TOKENS), ref, progress)


def _decoded(
    model: LocalModel, passages: Sequence[Ids], name: str, progress: Progress
) -> dict[str, Any]:
    """The tokens and the seconds of our decoding beside those of generate."""
    plain = Plain.of(model)
    both: dict[str, Callable[[Ids], Ids]] = {
        OURS: partial(_ours, model),
        THEIRS: partial(_theirs, model, plain),
    }
    for write in both.values():  # warms up
        write(passages[0])
    equal = 0
    timings: dict[str, list[Timing]] = {writer: [] for writer in both}
    for index, ids in enumerate(passages):
        written: dict[str, Ids] = {}
        for writer in both if index % 2 else reversed(both):
            note = partial(_note, written, writer, both[writer], ids)
            timings[writer].append(timed(note, model.device))
        equal += written[OURS] == written[THEIRS]
    ratios = [theirs.seconds / ours.seconds for ours, theirs in zip(*timings.values(), strict=True)]
    speed = round(median(ratios), 3)
    progress(
        f"{name}: {equal} of {len(passages)} equal, {speed}x generate; "
        + ", ".join(f"{writer} {said(taken)}" for writer, taken in timings.items())
    )
    theirs = figures(timings[THEIRS])
    return {
        "of": name,
        "prompts": len(passages),
        "prompt_tokens": TOKENS,
        "new_tokens": NEW,
        "equal": equal,
        "speed_vs_generate": speed,
        **figures(timings[OURS]),
        "generate_seconds": theirs["seconds"],
        **{f"generate_{key}": theirs[key] for key in ("cpu_share", "contended") if key in theirs},
    }


def _note(written: dict[str, Ids], writer: str, write: Callable[[Ids], Ids], ids: Ids) -> None:
    written[writer] = write(ids)


def _prefilled(model: LocalModel, text: Path | None, progress: Progress) -> list[dict[str, Any]]:
    """The seconds of reading a text: ours, then one plain forward of transformers."""
    (ids,) = cut_passages(model, text, 1, PREFILL)
    plain = Plain.of(model)
    request = TurnRequest(ids=ids, keep_state=True)
    ways: dict[str, Callable[[], object]] = {
        OURS: partial(drive_turn, model, request),
        THEIRS: partial(plain.prefill, ids),
    }
    timings = timed_in_turn(ways, ROUNDS, model.device)
    ours = median_seconds(timings[OURS])
    progress("; ".join(f"prefill, {way} {said(taken)}" for way, taken in timings.items()))
    return [
        {
            "of": f"prefill, {way}",
            "prompt_tokens": len(ids),
            "ours_is_faster": round(median_seconds(taken) / ours, 3),
            **figures(taken),
        }
        for way, taken in timings.items()
    ]


def _continuation_equals_text(model: LocalModel, words: tuple[int, ...]) -> bool:
    """Whether a receiver writes the same after a continuation as after text."""
    scene = Scene.make(model, words)
    answers = []
    for channel in (TextChannel(), SameModelCacheChannel()):
        request = TurnRequest(
            ids=scene.ids,
            inbound=(scene.delivery(channel),),
            sampling=Sampling(max_tokens=NEW // 2, stop_ids=model.stop_ids),
        )
        events, computed = drive_turn(model, request)
        exact = [event.report.exact for event in events if isinstance(event, Carried)]
        answers.append((computed.ids, exact))
    return answers[0] == answers[1]


def _ours(model: LocalModel, ids: Ids) -> Ids:
    prompt = ids + model.context_builder.ask()
    sampling = Sampling(max_tokens=NEW, stop_ids=model.stop_ids)
    _, computed = drive_turn(model, TurnRequest(ids=prompt, sampling=sampling))
    return (*computed.ids[len(prompt) :], *model.context_builder.close())[:NEW]


def _theirs(model: LocalModel, plain: Plain, ids: Ids) -> Ids:
    (written,) = plain.generate([ids + model.context_builder.ask()], NEW)
    return (*written, *model.context_builder.close())[:NEW]


def _tiny_gemma(model: LocalModel) -> LocalModel:
    """A random Gemma 3 with a window shorter than the prompts, on the tokenizer of `model`."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(model.tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=WINDOW,
        max_position_embeddings=1024,
        layer_types=["sliding_attention", "full_attention"] * 3,
        eos_token_id=model.tokenizer.eos_token_id,
        pad_token_id=model.tokenizer.pad_token_id,
        bos_token_id=model.tokenizer.bos_token_id,
    )
    random = Gemma3ForCausalLM(config)
    torch.nn.Module.to(random, model.device)
    identity = ModelIdentity("random", "random", model.identity.tokenizer)
    return LocalModel(random, model.tokenizer, identity=identity)
