"""Every architecture of transformers that writes text, tiny and random: what works with each.

``python tests/samples/model_sweep.py`` sweeps all and writes docs/architectures.json, of which
docs/architectures.md has the table; with names it sweeps those and writes nothing. The number of
architectures that did not do what they claim, or crashed, is its exit status.
"""

import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import anyio
import torch
import transformers
from rows import Row, ids_of, step
from tiny_models import CAUSAL, VISION, class_of, lacks_recurrent, quiet, tiny_weights
from transformers import DynamicCache, PreTrainedModel

from unspoken.agents import LocalModel
from unspoken.agents.engines.base import Sampling, TurnRequest
from unspoken.agents.engines.local import LocalEngine
from unspoken.agents.engines.worker import Worker
from unspoken.agents.runtime.states import StateStore
from unspoken.agents.testing import tiny_tokenizer
from unspoken.channels.errors import ModelSupportError, UnspokenError
from unspoken.channels.kv.state import KVState

SECONDS = 60
"""Most that one architecture may take."""

VOCABULARY, NEW, TOLERANCE = 120, 6, 2e-3
EVERY = {**CAUSAL, **VISION}
KEPT = Path(__file__).resolve().parents[2] / "docs" / "architectures.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What an architecture does.

    Attributes:
        kind: The model type.
        made_by: Its class in transformers.
        unmade: Why no tiny model was made, which says nothing of this framework.
        refused: Why it is refused at load.
        crashed: What went wrong instead of a refusal.
        row: By ability None, or why not.
        broken: What it claims and does not do.
    """

    kind: str
    made_by: str
    unmade: str | None = None
    refused: str | None = None
    crashed: str | None = None
    row: Mapping[str, str | None] = field(default_factory=dict)
    broken: tuple[str, ...] = ()

    @property
    def works(self) -> bool:
        """Whether it writes what transformers writes, and all that it claims holds."""
        return bool(self.row) and not (self.broken or self.crashed)


class _TooLong(Exception):
    pass


def sweep(kind: str) -> Swept:
    """Make, load and try an architecture; nothing is raised."""
    named: dict[str, Any] = {"kind": kind, "made_by": class_of(kind)}
    try:
        with _limit(SECONDS), quiet(), tempfile.TemporaryDirectory() as folder:
            try:
                made = tiny_weights(kind)
                made.generation_config = transformers.GenerationConfig(
                    eos_token_id=None, pad_token_id=0
                )
                expected = _generated(made, ids_of(0, 9, VOCABULARY))
            except Exception as error:
                return Swept(**named, unmade=_told(error))
            if lacks_recurrent(made):
                return Swept(**named, crashed="the tiny model has none of its recurrent layers")
            try:
                model = _loaded(made, Path(folder))
            except ModelSupportError as error:
                return Swept(**named, refused=error.found)
            if model.refuses_states is not None:  # one that was not loaded from a folder
                return Swept(**named, refused=model.refuses_states)
            if _generated(model.hf, ids_of(0, 9, VOCABULARY)) != expected:
                return Swept(**named, crashed="what was loaded writes another text")
            row = dict(model.abilities)
            return Swept(**named, row=row, broken=tuple(_broken(model, row)))
    except Exception as error:
        return Swept(**named, crashed=_told(error))


def _told(error: Exception) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:160]


def _loaded(made: PreTrainedModel, folder: Path) -> LocalModel:
    """A model as people have it: from a folder."""
    if made.config.model_type not in EVERY:  # the text part of a checkpoint that has others too
        return LocalModel(made, tiny_tokenizer(), ref=made.config.model_type)
    made.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    model = LocalModel.load(folder)
    model.hf.generation_config.eos_token_id = None  # nothing ends a turn before its limit
    return model


def _generated(model: PreTrainedModel, ids: Sequence[int], count: int = NEW) -> list[int]:
    """What transformers' `generate` writes after `ids`."""
    prompt = torch.tensor([list(ids)])
    written: Any = model.generate(  # type: ignore[operator]
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,
    )
    return list(written[0, len(ids) :].tolist())


def _broken(model: LocalModel, row: Mapping[str, str | None]) -> Iterator[str]:
    """Each ability that a model claims and does not show, with what was found."""
    checks = {
        "text": _text,
        "continuation": _continuation,
        "splice": _splice,
        "recompute": _recompute,
        "receiver": _receiver,
    }
    for name, check in checks.items():
        if row[name] is None:
            try:
                problem = check(model)
            except UnspokenError as error:
                problem = error.found
            except Exception as error:
                problem = _told(error)
            if problem:
                yield f"{name}: {problem}"


def _text(model: LocalModel) -> str | None:
    """Three turns at once, longer than the windows, each as `generate` writes it alone."""
    contexts = [ids_of(seed, 9 + 5 * seed, VOCABULARY) for seed in range(3)]
    engine = LocalEngine(model, StateStore(), Worker("sweep"))
    written: dict[int, list[int]] = {}

    async def turn(number: int) -> None:
        request = TurnRequest(ids=tuple(contexts[number]), sampling=Sampling(max_tokens=NEW))
        outcome = await engine.turn(request, lambda event: None)
        written[number] = list(outcome.ids[len(contexts[number]) :])

    async def all_turns() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(len(contexts)):
                tasks.start_soon(turn, number)

    anyio.run(all_turns)
    for number, ids in enumerate(contexts):
        expected = _generated(model.hf, ids)
        if written[number] != expected:
            return f"turn {number} wrote {written[number]}, and generate {expected}"
    return None


def _continuation(model: LocalModel) -> str | None:
    """From the state of the first part of a context, and of its first token."""
    ids = ids_of(7, 21, VOCABULARY)
    expected = _generated(model.hf, ids)
    for shared in (14, 1):
        state = model.read(ids[:shared])
        row = Row(model, ids, [state])
        while len(row.written) < NEW:
            step([row])
        if row.written != expected:
            return f"from {shared} tokens it wrote {row.written}, and generate {expected}"
    return None


def _splice(model: LocalModel) -> str | None:
    """Rows that were moved are those of the new place; all recomputed, the answer is the text's."""
    own, message, question = (
        ids_of(seed, count, VOCABULARY) for seed, count in ((1, 9), (2, 12), (3, 5))
    )
    alone = model.read(message)
    moved = alone.shift(len(own), model.geometry, model.rotary)
    apart = _apart_from_place(model, message, len(own), moved)
    if apart > TOLERANCE:
        return f"moved rows differ from those of the place by {apart:.2g}"
    ids = own + message + question
    states = [model.read(own), moved]
    row = Row(model, ids, states, again=range(len(own), len(own) + len(message)))
    step([row])  # the context but for its last token, or all of it
    while len(row.written) < NEW:
        step([row])
    expected = _generated(model.hf, ids)
    return None if row.written == expected else f"recomputed {row.written}, generate {expected}"


@torch.no_grad()
def _apart_from_place(model: LocalModel, ids: Sequence[int], at: int, moved: KVState) -> float:
    """Largest difference between moved rows and what transformers computes there by itself."""
    cache = DynamicCache()
    positions = torch.arange(at, at + len(ids))[None]
    inputs = {"input_ids": torch.tensor([list(ids)]), "position_ids": positions}
    model.backbone.read(inputs | {"past_key_values": cache, "use_cache": True})
    return max(
        float((there[0] - ours).abs().max() / there.std().clamp(min=1e-6))
        for layer, rows in zip(cache.layers, moved.layers, strict=True)
        for there, ours in ((layer.keys, rows.keys), (layer.values, rows.values))
    )


def _recompute(model: LocalModel) -> str | None:
    """The last layers over the middle of a context, from their own inputs."""
    ids, first, start = ids_of(4, 20, VOCABULARY), 1, 8
    count = len(model.backbone.layers)
    whole = model.read(ids, capture=[first])
    hidden = whole.hidden[first][start:]
    before = [whole.slice(0, start)]
    positions = torch.arange(start, len(ids))
    _, layers = model.run_layers(hidden, first, count, positions, before)
    apart = max(
        float((ours - theirs).abs().max())
        for layer, rows in zip(whole.layers[first:], layers, strict=True)
        for theirs, ours in (
            (layer.keys[:, start:], rows.keys),
            (layer.values[:, start:], rows.values),
        )
    )
    return f"rows differ by {apart:.2g}" if apart > TOLERANCE else None


def _receiver(model: LocalModel) -> str | None:
    """Gradients of its logits reach the state it was given, by which a bridge learns."""
    ids = ids_of(5, 10, VOCABULARY)
    state = model.read(ids[:6])
    leaves = [
        rows.requires_grad_() for layer in state.layers for rows in (layer.keys, layer.values)
    ]
    model.logits(torch.tensor(ids[6:]), [state], grad=True).logsumexp(-1).sum().backward()
    reached = all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)
    return None if reached else "no gradient reaches some of the rows"


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def summary(swept: Sequence[Swept]) -> str:
    """Counts, in a line."""
    working = [one for one in swept if one.works]
    counts = [f"{len(swept)} architectures", f"{len(working)} work"]
    for name in ("continuation", "splice", "recompute", "sharer", "receiver", "batched"):
        counts.append(f"{name} {sum(one.row[name] is None for one in working)}")
    counts += [
        f"{sum(one.refused is not None for one in swept)} refused",
        f"{sum(one.unmade is not None for one in swept)} not made",
        f"{sum(bool(one.broken or one.crashed) for one in swept)} faults",
    ]
    return ", ".join(counts)


def _line(one: Swept) -> str:
    if one.unmade or one.refused or one.crashed:
        reasons = {"not made": one.unmade, "refused": one.refused, "CRASHED": one.crashed}
        return next(f"{name}: {why}" for name, why in reasons.items() if why)
    if one.broken:
        return "BROKEN: " + " | ".join(one.broken)
    lacking = [f"no {name}: {why}" for name, why in one.row.items() if why]
    return "works" + (f" ({'; '.join(lacking)})" if lacking else "")


def changed(swept: Sequence[Swept]) -> Iterator[str]:
    """Per architecture of which something else was found than what is kept, a line."""
    kept = json.loads(KEPT.read_text(encoding="utf-8"))["architectures"] if KEPT.exists() else []
    before = {one["kind"]: one for one in kept}
    for one in swept:
        was = before.get(one.kind)
        if was != json.loads(json.dumps(asdict(one))):
            told = "it is new" if was is None else f"was: {_line(Swept(**was))}"
            yield f"changed: {one.kind}: {_line(one)}; {told}"


def main() -> int:
    """Sweep, print a line for each, and keep what was found of all."""
    transformers.logging.set_verbosity_error()
    kinds = sys.argv[1:] or [*sorted(CAUSAL), *sorted(VISION)]
    swept = []
    for kind in kinds:
        swept.append(sweep(kind))
        sys.stdout.write(f"{kind}: {_line(swept[-1])}\n")
        sys.stdout.flush()
    for known in (CAUSAL, VISION):
        if among := [one for one in swept if one.kind in known]:
            sys.stdout.write(summary(among) + "\n")
    sys.stdout.writelines(f"{line}\n" for line in changed(swept))
    if not sys.argv[1:]:
        kept = {
            "transformers": transformers.__version__,
            "causal": len(CAUSAL),  # those that come first
            "architectures": [asdict(one) for one in swept],
        }
        KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return sum(bool(one.broken or one.crashed) for one in swept)


if __name__ == "__main__":
    raise SystemExit(main())
