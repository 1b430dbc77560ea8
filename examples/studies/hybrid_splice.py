"""A message at another place, on a model with recurrent layers: what a splice would keep and save.

Rows of attention layers can be moved; a recurrent layer must have the hidden state of every token.
The receiver may compute those itself, which is exact up to the last recurrent layer, or fold those
that the sharer's layers had, which is to recurrent layers what a splice is to rows. Each way is
compared with one pass over the whole text.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from study import TEXT, Measured, Progress, run
from unspoken.agents.bench.forced import means, rotated, score
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scene import Scene
from unspoken.agents.bench.splice import PROMPT, RECEIVER, SHARER
from unspoken.agents.bench.turns import generate
from unspoken.agents.engines.assembly import Past
from unspoken.agents.engines.base import Sampling, TurnRequest
from unspoken.agents.engines.turn import drive_turn
from unspoken.agents.models.hf_cache import ContextCache
from unspoken.agents.models.model import LocalModel
from unspoken.agents.testing import tiny_model
from unspoken.channels.errors import InputError
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.snapshot import Snapshot
from unspoken.channels.kv.state import KVState

PASSAGES, TOKENS, FORCED, WRITTEN = 20, 256, 40, 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A message behind other tokens than at its sharer.

    Attributes:
        model: The model of both ends.
        ids: The receiver's context.
        at: Position of the message there, a turn with its markers.
        stop: Position after it.
        source: Its position at the sharer.
        empty: The receiver's context without the message.
        forced: Ids that are forced after the context.
        before: State of the receiver's tokens before the message.
        theirs: The sharer's state, with the inputs of its recurrent layers.
        full: The forced distributions after one pass over everything, (forced, vocabulary).
    """

    model: LocalModel
    ids: tuple[int, ...]
    at: int
    stop: int
    source: int
    empty: tuple[int, ...]
    forced: tuple[int, ...]
    before: KVState
    theirs: KVState
    full: Tensor

    def over(self, state: KVState, ids: tuple[int, ...] | None = None) -> Tensor:
        """The forced distributions where the context goes on from a state of its beginning."""
        ids, model = self.ids if ids is None else ids, self.model
        rest = model.tensor(ids[state.stop : -1])
        before = model.prefill(rest, [state]).state
        logits = model.logits(model.tensor((ids[-1], *self.forced[:-1])), [before])
        return logits.float().log_softmax(dim=-1)


def measure(model: LocalModel, *, text: Path | None = None, progress: Progress) -> Measured:
    """Rows per way, and whether continuations write what text writes."""
    geometry = model.geometry
    if not geometry.recurrent:
        raise InputError(
            f"the layers of {model.ref or 'the model'} {geometry.described()}",
            expected="a model with recurrent layers",
            fix="name one with --model, or leave it out for a tiny random one",
        )
    passages = cut_passages(model, text, PASSAGES, TOKENS + FORCED)
    progress("computing the messages and their full recompute")
    cases = [_case(model, ids) for ids in passages]
    rows = []
    for name, (logs, costs) in _ways(model, cases).items():
        scores = map(score, [case.full for case in cases], logs)
        rows.append({"way": name, **means(scores), **costs, "passages": len(cases)})
        progress(f"{name}: KL {rows[-1]['mean_kl']:.6f}, top-1 {rows[-1]['top1']:.3f}")
    by_way = {row["way"]: row for row in rows}
    return rows, {
        "layers": len(geometry.layers),
        "recurrent_layers": sum(bool(layer.recurrent) for layer in geometry.layers),
        "read_through": geometry.read_through,
        "text_kl": by_way["text"]["mean_kl"],
        "same_tokens": sum(_continues(model, ids[:TOKENS]) for ids in passages),
        "prompts": len(passages),
    }


def _case(model: LocalModel, words: tuple[int, ...]) -> Case:
    scene = Scene.make(
        model, words[:TOKENS], prompt=PROMPT, sharer_system=SHARER, receiver_system=RECEIVER
    )
    segment, forced = scene.message.segments[0], words[TOKENS:]
    (span,) = scene.context.spans(scene.message)
    source = segment.position
    at = span.at - (span.source - source)
    folds = [number for number, layer in enumerate(model.geometry.layers) if layer.recurrent]
    return Case(
        model=model,
        ids=scene.ids,
        at=at,
        stop=at + len(segment.ids),
        source=source,
        empty=scene.empty_ids,
        forced=forced,
        before=model.read(scene.ids[:at]),
        theirs=model.read(scene.message.context, folds),
        full=_in_one_pass(model, (*scene.ids, *forced[:-1]))[-len(forced) :],
    )


@torch.no_grad()
def _in_one_pass(model: LocalModel, ids: Sequence[int]) -> Tensor:
    """Log-probabilities after every token, without any cache."""
    with model.backbone.computing():
        logits = model.backbone.logits({"input_ids": model.tensor(ids)[None], "use_cache": False})
    return logits.float().log_softmax(dim=-1)


def _ways(
    model: LocalModel, cases: Sequence[Case]
) -> Mapping[str, tuple[Iterable[Tensor], Mapping[str, Any]]]:
    """Each way to hand the message over, and its costs; controls last."""
    geometry, size = model.geometry, model.dtype.itemsize
    count, through = len(geometry.layers), geometry.read_through
    rows = geometry.bytes_per_token(size)
    above = sum(layer.kv_heads * (layer.head_dim + layer.values) for layer in _above(model)) * size
    folds = sum(bool(layer.recurrent) for layer in geometry.layers)
    inputs = folds * geometry.hidden_size * size

    def costs(layers: int, token_bytes: int, mixers: int = 0) -> dict[str, Any]:
        read = f"{mixers} mixers" if mixers else f"{layers} of {count}"
        return {"layers_read": read, "bytes_per_token": token_bytes}

    def by(way: Callable[[Case], KVState]) -> Iterable[Tensor]:
        return (case.over(way(case)) for case in cases)

    swapped = [replace(case, theirs=other.theirs) for case, other in _pairs(cases)]
    return {
        "text": (by(_read), costs(count, 0)),
        "read again, rows above moved": (by(_above_moved), costs(through, above)),
        "rows moved, sharer's inputs folded": (by(_folded), costs(0, rows + inputs, folds)),
        "rows moved, sharer's snapshot": (by(_taken_over), costs(0, rows)),
        "rows moved, snapshot before": (by(_passed_by), costs(0, rows)),
        "another example's message": (
            (case.over(_folded(case)) for case in swapped),
            costs(0, rows + inputs, folds),
        ),
        "no message": (
            (case.over(model.read(case.empty[: case.at]), case.empty) for case in cases),
            costs(0, 0),
        ),
    }


def _pairs(cases: Sequence[Case]) -> Iterable[tuple[Case, Case]]:
    """Cases with another whose message stands in the place of theirs."""
    return zip(cases, rotated(cases), strict=True)


def _above(model: LocalModel) -> Sequence[Any]:
    """Shapes of the layers above the last recurrent one."""
    return model.geometry.layers[model.geometry.read_through :]


# -- ways


def _read(case: Case) -> KVState:
    """The receiver reads the message."""
    return _after(case, case.model.tensor(case.ids[case.at : case.stop]))


def _after(case: Case, ids: Tensor) -> KVState:
    return case.model.prefill(ids, [case.before]).state


def _above_moved(case: Case) -> KVState:
    """The receiver reads up to the last recurrent layer; above it stand the sharer's rows."""
    exact, through = _read(case), case.model.geometry.read_through
    layers = [
        LayerState.joined((layer.slice(0, case.at), _moved(case, number)))
        if number >= through
        else layer
        for number, layer in enumerate(exact.layers)
    ]
    return replace(exact, layers=tuple(layers))


def _moved(case: Case, number: int) -> LayerState:
    """The sharer's rows of a layer at the receiver's positions."""
    model, shape = case.model, case.model.geometry.layers[number]
    rows = case.theirs.layers[number].slice(case.source, case.source + case.stop - case.at)
    rotary = None if shape.rope is None else model.backbone.rotary(shape.rope)
    return rows.moved(case.at - case.source, rotary, latent=shape.latent)


def _placed(case: Case, fold: Callable[[ContextCache, int], None]) -> KVState:
    """Rows moved into a cache; what recurrent layers get is the way's own."""
    model = case.model
    cache = model.open([case.before], range(case.at, case.stop), spare=0)
    for number, shape in enumerate(model.geometry.layers):
        if shape.recurrent:
            fold(cache, number)
        if shape.kv_heads and cache.rows[number].length < case.stop:
            cache.rows[number].place(_moved(case, number), case.at)
    cache.filled(case.stop, case.theirs.layers[0].keys.new_empty(0))
    return cache.snapshot()


@torch.no_grad()
def _folded(case: Case) -> KVState:
    """Recurrent layers go on over the inputs that the sharer's had: a splice of theirs."""
    backbone, kinds = case.model.backbone, case.model.backbone.kinds
    at, stop = case.source, case.source + case.stop - case.at

    def fold(cache: ContextCache, number: int) -> None:
        whole = case.theirs.hidden[number][at:stop]
        steps = torch.split(whole, 1 if backbone.reads_singly else len(whole))
        for step, first in zip(steps, range(case.at, case.stop), strict=False):
            places = torch.arange(first, first + len(step), device=step.device)[None]
            ropes = backbone.position_embeddings(step[None], places)
            inputs = {
                "attention_mask": None,
                "position_ids": places,
                "position_embeddings": ropes[kinds[number]],
                "past_key_values": cache,
                "use_cache": True,
            }
            layer = backbone.layers[number]
            layer(step[None], **backbone._known(layer, inputs))

    with backbone.computing():
        return _placed(case, fold)


def _taken_over(case: Case) -> KVState:
    """The sharer's recurrent state as it is after the message, whatever the receiver read."""
    stop = case.source + case.stop - case.at
    theirs = next(one for one in case.theirs.snapshots if one.at == stop)
    placed = _placed(case, lambda cache, number: None)
    return replace(placed, snapshots=(Snapshot(case.stop, theirs.layers),))


def _passed_by(case: Case) -> KVState:
    """Recurrent layers get nothing of the message."""
    return _placed(case, lambda cache, number: None)


# -- continuations


def _continues(model: LocalModel, words: tuple[int, ...]) -> bool:
    """Whether a turn over the state of an equal beginning writes what `generate` writes."""
    scene = Scene.make(model, words, prompt=PROMPT)
    state = scene.message.require_state()
    sampling = Sampling(max_tokens=WRITTEN, min_tokens=WRITTEN, stop_ids=model.stop_ids)
    asked = TurnRequest(ids=scene.ids, sampling=sampling)
    _, computed = drive_turn(model, asked, Past(scene.message.context, state))
    (expected,) = generate(model, [scene.ids], WRITTEN, min_new_tokens=WRITTEN)
    same = computed.ids[len(scene.ids) :][:WRITTEN] == expected
    return same and computed.usage.reused_tokens == state.stop


def _tiny() -> LocalModel:
    """Eight layers in the order of Qwen3-Next: each fourth has full attention.

    Where a choice of experts hangs on rounding, no two ways write the same, so it has none. Random
    gates forget within a few tokens; these keep a state over one to a thousand tokens.
    """
    model = tiny_model(family="qwen3_next", num_hidden_layers=8, mlp_only_layers=list(range(8)))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, weight in model.hf.named_parameters():
            if name.endswith("A_log"):
                weight.uniform_(-7, 0)
    model.ref = "tiny qwen3_next, 8 layers, random"
    return model


def main() -> None:
    """Run the study from the command line."""
    run(measure, __doc__, pair=False, files={"text": TEXT}, made=_tiny)


if __name__ == "__main__":
    main()
