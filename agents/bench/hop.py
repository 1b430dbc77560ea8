"""Time to the first token after a hand-over, under every condition in turn, in one run."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache

from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.bench.scene import Scene
from unspoken.agents.engines.assembly import Past
from unspoken.agents.engines.base import Sampling, TurnRequest
from unspoken.agents.engines.turn import drive_turn
from unspoken.agents.models.model import LocalModel
from unspoken.channels.base import Channel
from unspoken.channels.kv.state import KVState
from unspoken.channels.machine import clock, in_turn, wait
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

SIZES = tuple(map(int, SCALES["hop"].parts))
ROUNDS = SCALES["hop"].rows
NEW = 32
BLOCK = 16
TEXT, INDEX = "text", " + shared prefix index"
SYSTEM = "You answer questions about the text you were given, in one short sentence."

Conditions = Mapping[str, Callable[[], float]]


def measure(
    model: LocalModel,
    *,
    text: Path | None = None,
    count: int | None = None,
    only: Collection[str] = (),
    progress: Progress,
) -> Measured:
    """Rows per message size and condition, and the ratios at 1,024 tokens."""
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        if size + 4 * NEW > model.max_positions or (only and str(size) not in only):
            continue
        words = cut_passages(model, text, 1, size)[0]
        plain, with_system = _plain(model, words), _with_system(model, words)
        rounds = count or (5 if size > 1024 else ROUNDS)
        seconds = in_turn({**plain, **with_system}, rounds)
        medians = {name: median(values) for name, values in seconds.items()}
        for group in (plain, with_system):
            # The faster of those that compute the whole message, for the same receiver.
            texts = [name for name in group if name.startswith(TEXT) and INDEX not in name]
            best = min(medians[name] for name in texts)
            rows += [
                {
                    "tokens": size,
                    "way": name,
                    "ttft_s": round(medians[name], 5),
                    "speedup_over_text": round(best / medians[name], 2),
                    "over_floor": round(medians[name] / medians["floor"], 3),
                    "fastest_s": round(min(seconds[name]), 5),
                    "rounds": rounds,
                }
                for name in group
            ]
        figures = ", ".join(f"{name} {value:.3f} s" for name, value in medians.items())
        progress(f"{size} tokens: {figures}")
    return rows, _summary(rows)


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    by_condition = {row["way"]: row for row in rows if row["tokens"] == 1024}
    if not by_condition:
        return {}
    return {
        "continuation_speedup_1024": by_condition["continuation"]["speedup_over_text"],
        "continuation_over_floor_1024": by_condition["continuation"]["over_floor"],
        "splice_speedup_1024": by_condition["splice, sink 4"]["speedup_over_text"],
    }


def _plain(model: LocalModel, words: tuple[int, ...]) -> Conditions:
    """Ways to a receiver whose prompt begins as the sharer's does."""
    scene = Scene.make(model, words, new_tokens=NEW)
    return {
        TEXT: partial(_turn, model, scene, TextChannel()),
        f"{TEXT} in one pass of transformers": partial(_one_pass, model, scene),
        f"{TEXT}{INDEX}": partial(_indexed, model, scene),
        "continuation": partial(_turn, model, scene, SameModelCacheChannel(share="prompt")),
        # The new tokens over a cache that is in place already.
        "floor": partial(_direct, model, scene.new_ids, scene.message.state),
    }


def _with_system(model: LocalModel, words: tuple[int, ...]) -> Conditions:
    """Ways to a receiver with a system prompt of its own."""
    scene = Scene.make(model, words, new_tokens=NEW, receiver_system=SYSTEM)

    def spliced(sink: int) -> Callable[[], float]:
        return partial(_turn, model, scene, SameModelCacheChannel(share="prompt", sink=sink))

    return {
        f"{TEXT}, own system prompt": partial(_turn, model, scene, TextChannel()),
        f"{TEXT} in one pass, own system prompt": partial(_one_pass, model, scene),
        "splice, sink 4": spliced(4),
        "splice, sink 64": spliced(64),
        "splice, no repair": spliced(0),
    }


def _turn(model: LocalModel, scene: Scene, channel: Channel) -> float:
    """Time to the first token of our own turn, the receiver's system turn in its cache."""
    return _first_token(model, scene, scene.history, channel)


def _indexed(model: LocalModel, scene: Scene) -> float:
    """Text inside one engine whose prefix cache finds blocks of 16 tokens of any request by id."""
    ids, state = scene.message.context, scene.message.require_state()
    shared = len(ids) // BLOCK * BLOCK
    return _first_token(model, scene, Past(ids[:shared], state.slice(0, shared)))


def _first_token(
    model: LocalModel, scene: Scene, history: Past | None, *channels: Channel
) -> float:
    inbound = tuple(map(scene.delivery, channels))
    request = TurnRequest(ids=scene.ids, inbound=inbound, sampling=Sampling(max_tokens=1))
    wait(model.device)
    ttft = drive_turn(model, request, history)[1].usage.ttft_s
    assert ttft is not None
    return ttft


def _one_pass(model: LocalModel, scene: Scene) -> float:
    """All tokens by one direct call, over the receiver's own prefix cache."""
    past = scene.history
    if past is None:
        return _direct(model, scene.ids, None)
    return _direct(model, scene.ids[len(past.ids) :], past.state)


def _direct(model: LocalModel, new: tuple[int, ...], state: KVState | None) -> float:
    """Time to the first token of `new` over a state, by transformers alone."""
    cache = DynamicCache()
    for number, layer in enumerate(state.layers if state else ()):
        cache.update(layer.keys[None], layer.values[None], number)
    ids = model.tensor(new)[None]

    @torch.no_grad()
    def first() -> int:
        with model.weights.lock:  # as transformers computes it
            logits = model.hf(ids, past_key_values=cache, logits_to_keep=1).logits
        return int(logits[0, -1].argmax())

    return clock(first, model.device)
