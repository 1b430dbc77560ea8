"""Greedy decoding against transformers' generate, and a continuation against text.

Both must write the same tokens; the first is timed too, each in turn.
"""

from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scene import Scene
from unspoken.agents.bench.turns import generate, until_stop
from unspoken.agents.engines.base import Carried, Sampling, TurnRequest
from unspoken.agents.engines.turn import drive_turn
from unspoken.agents.models.model import LocalModel
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

PROMPTS, TOKENS, NEW, WINDOW = 20, 96, 48, 32


def measure(model: LocalModel, *, text: Path | None = None, progress: Progress) -> Measured:
    """Rows per model, and whether all tokens are equal; the speed is that of the given model."""
    passages = cut_passages(model, text, PROMPTS, TOKENS)
    rows = [
        _compared(model, passages, "the model"),
        _compared(_tiny_gemma(model), passages, f"random Gemma 3, window {WINDOW}"),
    ]
    for row in rows:
        progress(
            f"{row['of']}: {row['equal']} of {row['prompts']} equal, "
            f"{row['speed_vs_generate']:.3f}x generate"
        )
    equal = sum(_continuation_equals_text(model, ids) for ids in passages)
    progress(f"continuation equals text on {equal} of {len(passages)}")
    rows.append({"of": "continuation against text", "prompts": len(passages), "equal": equal})
    return rows, {
        "speed_vs_generate": rows[0]["speed_vs_generate"],
        "tokens_equal": all(row["equal"] == row["prompts"] for row in rows[:2]),
        "continuation_equals_text": equal == len(passages),
    }


def _compared(model: LocalModel, passages: list[tuple[int, ...]], name: str) -> dict[str, Any]:
    both = {"ours": partial(_ours, model), "theirs": partial(_theirs, model)}
    for write in both.values():  # warms up
        write(passages[0])
    equal = 0
    seconds: dict[str, list[float]] = {writer: [] for writer in both}
    for index, ids in enumerate(passages):
        written = {}
        for writer in both if index % 2 else reversed(both):
            began = perf_counter()
            written[writer] = both[writer](ids)
            seconds[writer].append(perf_counter() - began)
        equal += written["ours"] == written["theirs"]
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    return {
        "of": name,
        "prompts": len(passages),
        "prompt_tokens": len(passages[0]),
        "new_tokens": NEW,
        "equal": equal,
        "speed_vs_generate": round(median(ratios), 3),
        "seconds": round(median(seconds["ours"]), 4),
        "generate_seconds": round(median(seconds["theirs"]), 4),
    }


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


def _ours(model: LocalModel, ids: tuple[int, ...]) -> tuple[int, ...]:
    prompt = ids + model.context_builder.ask()
    sampling = Sampling(max_tokens=NEW, stop_ids=model.stop_ids)
    _, computed = drive_turn(model, TurnRequest(ids=prompt, sampling=sampling))
    return (*computed.ids[len(prompt) :], *model.context_builder.close())[:NEW]


def _theirs(model: LocalModel, ids: tuple[int, ...]) -> tuple[int, ...]:
    (written,) = generate(model, [ids + model.context_builder.ask()], NEW)
    return (*until_stop(model, written), *model.context_builder.close())[:NEW]


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
