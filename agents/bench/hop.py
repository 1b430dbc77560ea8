"""Time to the first token after a hand-over, by every way there is, in one run, each in turn."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import DynamicCache

from unspoken.agents.bench import Files, Progress
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scene import Scene
from unspoken.agents.engines.turn import TurnOutcome, TurnRequest, run_turn
from unspoken.agents.models.model import LocalModel
from unspoken.agents.spec.spec import GenerateSpec
from unspoken.channels.base import Channel
from unspoken.channels.kv.state import KVState
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

__all__ = ["measure"]

SIZES = (256, 512, 1024, 2048)
NEW = 32
BLOCK = 16
TEXT, INDEX = "text", " + shared prefix index"
SYSTEM = "You answer questions about the text you were given, in one short sentence."


@dataclass(frozen=True, slots=True)
class _Way:
    name: str
    own_system: bool
    time: Callable[[], float]


def measure(
    model: LocalModel, files: Files, progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows per message size and way, and the ratios at 1,024 tokens."""
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        if size + 4 * NEW > model.max_positions:
            continue
        words = cut_passages(model, files.text, 1, size)[0]
        ways = _ways(model, words)
        rounds = 5 if size > 1024 else 9
        times: dict[str, list[float]] = {way.name: [] for way in ways}
        for one in range(rounds + 1):
            for way in ways:
                seconds = way.time()
                if one:  # the first round warms up
                    times[way.name].append(seconds)
        medians = {name: median(values) for name, values in times.items()}
        for way in ways:
            rows.append(
                {
                    "tokens": size,
                    "way": way.name,
                    "ttft_s": round(medians[way.name], 5),
                    "speedup_over_text": round(
                        _best_text(ways, medians, way) / medians[way.name], 2
                    ),
                    "over_floor": round(medians[way.name] / medians["floor"], 3),
                    "fastest_s": round(min(times[way.name]), 5),
                    "rounds": rounds,
                }
            )
        progress(
            f"{size} tokens: "
            + ", ".join(f"{name} {value:.3f} s" for name, value in medians.items())
        )
    return rows, _summary(rows)


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    at = {row["way"]: row for row in rows if row["tokens"] == 1024}
    if not at:
        return {}
    return {
        "continuation_speedup_1024": at["continuation"]["speedup_over_text"],
        "continuation_over_floor_1024": at["continuation"]["over_floor"],
        "splice_speedup_1024": at["splice, sink 4"]["speedup_over_text"],
    }


def _ways(model: LocalModel, words: tuple[int, ...]) -> list[_Way]:
    plain = Scene.make(model, words, new_tokens=NEW)
    own = Scene.make(model, words, new_tokens=NEW, receiver_system=SYSTEM)
    cache = SameModelCacheChannel(share="prompt")

    def turn(scene: Scene, channel: Channel) -> Callable[[], float]:
        return lambda: _first_token(model, scene, channel)

    return [
        _Way(TEXT, False, turn(plain, TextChannel())),
        _Way(f"{TEXT} in one pass of transformers", False, lambda: _one_pass(model, plain)),
        _Way(f"{TEXT}{INDEX}", False, lambda: _indexed(model, plain)),
        _Way("continuation", False, turn(plain, cache)),
        _Way("floor", False, lambda: _floor(model, plain)),
        _Way(f"{TEXT}, own system prompt", True, turn(own, TextChannel())),
        _Way(f"{TEXT} in one pass, own system prompt", True, lambda: _one_pass(model, own)),
        _Way("splice, sink 4", True, turn(own, cache)),
        _Way("splice, sink 64", True, turn(own, SameModelCacheChannel(share="prompt", sink=64))),
        _Way("splice, no repair", True, turn(own, SameModelCacheChannel(share="prompt", sink=0))),
    ]


def _best_text(ways: list[_Way], medians: dict[str, float], way: _Way) -> float:
    """The faster of the ways that compute the whole message, for the same receiver."""
    same = [one for one in ways if one.own_system == way.own_system]
    rivals = [one for one in same if one.name.startswith(TEXT) and INDEX not in one.name]
    return min(medians[one.name] for one in rivals)


def _first_token(model: LocalModel, scene: Scene, channel: Channel) -> float:
    """Time to the first token of the product's own turn; its prefix cache holds the receiver's
    system turn.
    """
    request = TurnRequest(
        scene.context,
        (scene.delivery(channel),),
        scene.history,
        GenerateSpec(max_new_tokens=1),
        keep_state=False,
    )
    return _ttft(_finish(model, request))


def _indexed(model: LocalModel, scene: Scene) -> float:
    """Text inside one engine whose prefix cache finds any earlier request's blocks of 16 tokens by
    their ids.
    """
    ids, state = scene.message.context, scene.message.state
    if state is None:
        raise RuntimeError("the scene's message has no state")
    shared = len(ids) // BLOCK * BLOCK
    own = (ids[:shared], state.slice(0, shared))
    request = TurnRequest(scene.context, (), own, GenerateSpec(max_new_tokens=1), keep_state=False)
    return _ttft(_finish(model, request))


def _floor(model: LocalModel, scene: Scene) -> float:
    """The receiver's new tokens by a direct call of transformers over a cache that is in place
    already.
    """
    return _direct(model, scene.new_ids, scene.message.state)


def _one_pass(model: LocalModel, scene: Scene) -> float:
    """The whole message and the receiver's own tokens by one direct call, over the receiver's own
    prefix cache.
    """
    ids = scene.context.ids + model.context_builder.ask(scene.context)
    known, state = scene.history or ((), None)
    return _direct(model, ids[len(known) :], state)


def _direct(model: LocalModel, new: tuple[int, ...], state: KVState | None) -> float:
    """Time to the first token of `new` over a state, by transformers alone."""
    cache = DynamicCache()
    for number, layer in enumerate(state.layers if state else ()):
        cache.update(layer.keys[None], layer.values[None], number)
    ids = model.tensor(new)[None]
    with torch.no_grad():
        _wait(model)
        began = perf_counter()
        logits = model.hf(ids, past_key_values=cache, logits_to_keep=1).logits
        int(logits[0, -1].argmax())
        return perf_counter() - began


def _finish(model: LocalModel, request: TurnRequest) -> TurnOutcome:
    _wait(model)
    steps = run_turn(model, request)
    with torch.no_grad():
        while True:
            try:
                next(steps)
            except StopIteration as end:
                outcome: TurnOutcome = end.value
                return outcome


def _ttft(outcome: TurnOutcome) -> float:
    if outcome.usage.ttft_s is None:
        raise RuntimeError("a turn that was to write wrote nothing")
    return outcome.usage.ttft_s


def _wait(model: LocalModel) -> None:
    if model.device.type != "cpu":
        torch.accelerator.synchronize(model.device)
