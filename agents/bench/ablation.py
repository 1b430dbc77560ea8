"""What each part of a bridge is worth: features, ranks and source layers of the closed form, and
the trained parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch

from unspoken.agents.bench import Files, Options, Progress
from unspoken.agents.bench.forms import judged_rows, passages_of, questions_of
from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.audit.controls import BRIDGE, MISMATCHED, ways_of
from unspoken.channels.bridges.audit.trial import Trials
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.closed import ClosedForms, choose
from unspoken.channels.bridges.features import width
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.data.text import Corpus, load_corpus

__all__ = ["measure"]

LAYERS, RANK, TOKENS, COLUMNS = 6, 512, 24_000, 12_288
COUNTS, RANKS = (3, 9), (128, 256, 768)
PASSAGES, QUESTIONS = 24, 40
FULL = 0

Variants = dict[str, ProjectorConfig]


def measure(
    sharer: LocalModel, receiver: LocalModel, files: Files, progress: Progress, options: Options
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row per variant: what it keeps of passages, and of questions where a file of them is given."""
    corpus = load_corpus()
    forms, variants = _forms(sharer, receiver, corpus, progress)
    trials, _ = passages_of(files, corpus, forms, PASSAGES)
    asked = questions_of(files, corpus, forms, QUESTIONS) if files.qa else None
    made = {}
    for name, config in variants.items():
        progress(f"solve: {name}")
        made[name] = config, forms.projector(config)
    forms.release()
    found = judged_rows(trials, forms, made)
    more = judged_rows(asked, forms, made) if asked is not None else {}
    del made
    rows = _rows(found, more, {name: config.rank or "full" for name, config in variants.items()})
    bridge = _trained(sharer, receiver, options)
    if bridge is not None:
        progress("the trained bridge, and its parts switched off")
        rows += _parts(bridge, sharer, receiver, files, corpus)
    by_name = {row["variant"]: row for row in rows}
    return rows, {
        _key(name): by_name[name]["retention"]
        for name in ("closed form", "sharer only", "embeddings only", "trained")
        if name in by_name
    }


def _key(name: str) -> str:
    return f"retention_{name.replace(' ', '_')}"


def _asked(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "qa_retention": row["retention"],
        "qa_mismatched": row["mismatched"],
        "qa_specific": row["specific"],
    }


def _forms(
    sharer: LocalModel, receiver: LocalModel, corpus: Corpus, progress: Progress
) -> tuple[ClosedForms, Variants]:
    """The variants, and all that they are solved from."""
    total = len(sharer.geometry.layers)
    most = _most(sharer, receiver)
    counts = sorted({min(count, most) for count in (LAYERS, *COUNTS, total)})
    chosen = choose(sharer, receiver, corpus, counts)
    layers = chosen[min(LAYERS, most)]
    every = sorted({layer for found in chosen.values() for layer in found})
    forms = ClosedForms(sharer, receiver, every)
    progress(f"one closed form of {forms.columns} features, source layers {tuple(every)}")
    forms.fit(corpus, TOKENS)
    return forms, dict(_variants(layers, chosen))


def _most(sharer: LocalModel, receiver: LocalModel) -> int:
    """Most source layers whose columns the memory allows."""
    room = COLUMNS - 2 * receiver.geometry.hidden_size
    count = len(sharer.geometry.layers)
    while count > 1 and width(sharer.geometry, range(count)) > room:
        count -= 1
    return count


def _variants(
    layers: tuple[int, ...], chosen: dict[int, tuple[int, ...]]
) -> Iterator[tuple[str, ProjectorConfig]]:
    def config(read: tuple[int, ...], embeddings: int = 2, rank: int = RANK) -> ProjectorConfig:
        return ProjectorConfig(read, embeddings=embeddings, rank=rank, hidden=0)

    yield "closed form", config(layers)
    for rank in RANKS:
        yield f"rank {rank}", config(layers, rank=rank)
    yield "uncut", config(layers, rank=FULL)
    yield "without the previous token's embedding", config(layers, 1)
    yield "sharer only", config(layers, 0)
    yield "embeddings only", config((), 2)
    for count, read in chosen.items():
        if read != layers:
            yield f"{count} source layers", config(read)


def _trained(sharer: LocalModel, receiver: LocalModel, options: Options) -> Bridge | None:
    folder = options.bridge or BridgeStore().find(sharer.identity, receiver.identity)
    if folder is None:
        return None
    bridge = Bridge.load(folder, receiver.device)
    bridge.check(sharer, receiver)
    return bridge


def _parts(
    bridge: Bridge,
    sharer: LocalModel,
    receiver: LocalModel,
    files: Files,
    corpus: Corpus,
) -> list[dict[str, Any]]:
    """The trained bridge, and with its parts switched off one at a time."""
    config = bridge.projector.config
    forms = ClosedForms(sharer, receiver, config.source_layers)  # for its models alone
    columns = width(sharer.geometry, config.source_layers)
    ways = {}
    for name, projector in _switched(bridge.projector):
        made = ways_of(projector, columns, receiver)
        ways[name] = made[BRIDGE], made[MISMATCHED]
    trials, _ = passages_of(files, corpus, forms, PASSAGES)
    asked = questions_of(files, corpus, forms, QUESTIONS) if files.qa else None
    found = judged_rows(_with(trials, config), forms, {}, ways)
    more = judged_rows(_with(asked, config), forms, {}, ways) if asked is not None else {}
    return _rows(found, more, dict.fromkeys(ways, config.rank))


def _rows(
    found: Mapping[str, dict[str, Any]],
    more: Mapping[str, dict[str, Any]],
    ranks: Mapping[str, int | str],
) -> list[dict[str, Any]]:
    """A row per variant, with the figures of questions where there are any."""
    return [
        {"variant": name, "rank": ranks[name], **row} | (_asked(more[name]) if more else {})
        for name, row in found.items()
    ]


def _with(trials: Trials, config: ProjectorConfig) -> Trials:
    """The same rows with the features of another configuration."""
    return Trials(trials.lessons, config, trials.sharer, trials.receiver)


def _switched(projector: Projector) -> Iterator[tuple[str, Projector]]:
    yield "trained", projector
    if not projector.config.hidden:
        return
    yield "trained, no residual", _zeroed(projector, ("spread",))
    yield "trained, no weighting (all 0.5)", _zeroed(projector, ("weigh.weight", "weigh.bias"))
    yield "trained, no gates (all 0.5)", _zeroed(projector, ("gate",))


@torch.no_grad()
def _zeroed(projector: Projector, names: Sequence[str]) -> Projector:
    """A copy whose parameters of these names are zero; a sigmoid makes 0.5 of that."""
    made = deepcopy(projector)
    for name, parameter in made.named_parameters():
        if name in names:
            parameter.zero_()
    return made
