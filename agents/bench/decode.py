"""Greedy decoding against transformers' generate: the same tokens, and the ratio of speeds, in
turn.

And a continuation against text: the same greedy tokens after a hand-over.
"""

from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from unspoken.agents.bench import Files, Progress
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scene import Scene
from unspoken.agents.engines.turn import TurnOutcome, TurnRequest, run_turn
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import Context
from unspoken.agents.spec.spec import GenerateSpec
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.message import Segment
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

__all__ = ["measure"]

PROMPTS, TOKENS, NEW, WINDOW = 20, 96, 48, 32


def measure(
    model: LocalModel, files: Files, progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows per model, and over both: whether all tokens are equal, and the speed on the model that
    was asked for.
    """
    passages = cut_passages(model, files.text, PROMPTS, TOKENS)
    rows = [
        _compare(model, passages, "the model"),
        _compare(_tiny_gemma(model), passages, f"random Gemma 3, window {WINDOW}"),
    ]
    for row in rows:
        progress(
            f"{row['of']}: {row['equal']} of {row['prompts']} equal, "
            f"{row['speed_vs_generate']:.3f}x generate"
        )
    continued = sum(_continued(model, ids) for ids in passages)
    progress(f"continuation equals text on {continued} of {len(passages)}")
    rows.append({"of": "continuation against text", "prompts": len(passages), "equal": continued})
    return rows, {
        "speed_vs_generate": rows[0]["speed_vs_generate"],
        "tokens_equal": all(row["equal"] == row["prompts"] for row in rows[:2]),
        "continuation_equals_text": continued == len(passages),
    }


def _compare(model: LocalModel, passages: list[tuple[int, ...]], name: str) -> dict[str, Any]:
    equal, ratios, ours_s, theirs_s = 0, [], [], []
    _ours(model, passages[0])
    _theirs(model, passages[0])
    for index, ids in enumerate(passages):
        order = (_ours, _theirs) if index % 2 else (_theirs, _ours)
        results = {one: one(model, ids) for one in order}
        (ours, our_time), (theirs, their_time) = results[_ours], results[_theirs]
        equal += ours == theirs
        ours_s.append(our_time)
        theirs_s.append(their_time)
        ratios.append(their_time / our_time)
    return {
        "of": name,
        "prompts": len(passages),
        "prompt_tokens": len(passages[0]),
        "new_tokens": NEW,
        "equal": equal,
        "speed_vs_generate": round(median(ratios), 3),
        "seconds": round(median(ours_s), 4),
        "generate_seconds": round(median(theirs_s), 4),
    }


def _continued(model: LocalModel, words: tuple[int, ...]) -> bool:
    """Whether a receiver writes the same after a continuation as after text."""
    scene = Scene.make(model, words)
    answers = []
    for channel in (TextChannel(), SameModelCacheChannel()):
        request = TurnRequest(
            scene.context,
            (scene.delivery(channel),),
            generate=GenerateSpec(max_new_tokens=NEW // 2),
        )
        outcome = _drive(model, request)[0]
        answers.append((outcome.context.ids, outcome.carries[0][1].exact))
    return answers[0] == answers[1]


@torch.no_grad()
def _drive(model: LocalModel, request: TurnRequest) -> tuple[TurnOutcome, float]:
    """A turn from its first step to its last, and the seconds it took."""
    began = perf_counter()
    steps = run_turn(model, request)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, perf_counter() - began


def _ours(model: LocalModel, ids: tuple[int, ...]) -> tuple[list[int], float]:
    segment = Segment("user", ids, (0, len(ids)), "", 0)
    ask = len(model.context_builder.ask(Context()))
    request = TurnRequest(Context().extended(segment), generate=GenerateSpec(max_new_tokens=NEW))
    outcome, seconds = _drive(model, request)
    written = outcome.context.segments[-1]
    return list(written.ids[ask : ask + NEW]), seconds


@torch.no_grad()
def _theirs(model: LocalModel, ids: tuple[int, ...]) -> tuple[list[int], float]:
    prompt = ids + model.context_builder.ask(Context())
    began = perf_counter()
    tensor = model.tensor(prompt)[None]
    hf: Any = model.hf
    written = hf.generate(
        input_ids=tensor,
        attention_mask=torch.ones_like(tensor),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=model.tokenizer.pad_token_id or 0,
    )[0, len(prompt) :].tolist()
    seconds = perf_counter() - began
    kept = next((at for at, token in enumerate(written) if token in model.stop_ids), len(written))
    closing = list(model.context_builder.close())
    return (written[:kept] + closing)[:NEW], seconds


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
    return LocalModel(random, model.tokenizer, ref="random Gemma 3", identity=identity)
