"""What each part of a bridge is worth: features, ranks, source layers and trained parts."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

import study
from assessed_forms import Conditions, assessed_rows, rows_of
from closed_forms import ClosedForms, choose
from study import Measured, Progress
from unspoken.agents.models.model import LocalModel
from unspoken.channels.bridges.audit.controls import BRIDGE, MISMATCHED, conditions_of
from unspoken.channels.bridges.audit.plan import AuditPlan
from unspoken.channels.bridges.audit.trial import Trials
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.features import width
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.data.text import Corpus, load_corpus

LAYERS, RANK, TOKENS, COLUMNS = 6, 512, 24_000, 12_288
COUNTS, RANKS = (3, 9), (128, 256, 768)
PASSAGES, QUESTIONS = 24, 40
FULL = 0
ASKED = ("retention", "mismatched", "specific")

Variants = dict[str, ProjectorConfig]


def measure(
    sharer: LocalModel,
    receiver: LocalModel,
    *,
    text: Path | None = None,
    qa: Path | None = None,
    bridge: Path | None = None,
    progress: Progress,
) -> Measured:
    """A row per variant: what it keeps of passages, and of questions where a file is given."""
    corpus = load_corpus()
    forms, variants = _forms(sharer, receiver, corpus, progress)
    plan = AuditPlan(text=text, qa=qa, passages=PASSAGES, questions=QUESTIONS, records=0)
    brought = plan.rows(corpus)
    trials = rows_of("continuation", brought, forms)
    asked = rows_of("question", brought, forms) if qa else None
    conditions = {}
    for name, config in variants.items():
        progress(f"solve: {name}")
        conditions[name] = forms.conditions(config, forms.projector(config))
    forms.release()
    ranks = {name: config.rank or "full" for name, config in variants.items()}
    rows = _rows(trials, asked, conditions, ranks)
    del conditions
    trained = _trained(sharer, receiver, bridge)
    if trained is not None:
        progress("the trained bridge, and its parts switched off")
        rows += _parts(trained, trials, asked)
    by_name = {row["variant"]: row for row in rows}
    return rows, {
        f"retention_{name.replace(' ', '_')}": by_name[name]["retention"]
        for name in ("closed form", "sharer only", "embeddings only", "trained")
        if name in by_name
    }


def _forms(
    sharer: LocalModel, receiver: LocalModel, corpus: Corpus, progress: Progress
) -> tuple[ClosedForms, Variants]:
    """The variants, and all that they are solved from."""
    total = len(sharer.geometry.layers)
    most = _most(sharer, receiver)
    counts = sorted({min(count, most) for count in (LAYERS, *COUNTS, total)})
    chosen = choose(sharer, receiver, corpus, counts)
    every = sorted({layer for layers in chosen.values() for layer in layers})
    forms = ClosedForms(sharer, receiver, every)
    progress(f"one closed form of {forms.columns} features, source layers {tuple(every)}")
    forms.fit(corpus, TOKENS)
    return forms, dict(_variants(chosen[min(LAYERS, most)], chosen))


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
        return ProjectorConfig(source_layers=read, embeddings=embeddings, rank=rank, hidden=0)

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


def _trained(sharer: LocalModel, receiver: LocalModel, folder: Path | None) -> Bridge | None:
    folder = folder or BridgeStore().find(sharer.identity, receiver.identity)
    if folder is None:
        return None
    bridge = Bridge.load(folder, receiver.device)
    bridge.check(sharer, receiver)
    return bridge


def _parts(bridge: Bridge, trials: Trials, asked: Trials | None) -> list[dict[str, Any]]:
    """The trained bridge, and with its parts switched off one at a time."""
    config = bridge.projector.config
    columns = width(trials.sharer.geometry, config.source_layers)
    conditions = {}
    for name, projector in _switched(bridge.projector):
        by_condition = conditions_of(projector, columns, trials.receiver)
        conditions[name] = by_condition[BRIDGE], by_condition[MISMATCHED]

    def with_features(rows: Trials) -> Trials:
        return Trials(rows.samples, config, rows.sharer, rows.receiver)

    ranks = dict.fromkeys(conditions, config.rank)
    questions = with_features(asked) if asked else None
    return _rows(with_features(trials), questions, conditions, ranks)


def _rows(
    trials: Trials, asked: Trials | None, conditions: Conditions, ranks: Mapping[str, int | str]
) -> list[dict[str, Any]]:
    """A row per variant, with the figures of questions where there are any."""
    passages = assessed_rows(trials, conditions)
    questions = assessed_rows(asked, conditions) if asked else {}
    rows = []
    for name, row in passages.items():
        line = {"variant": name, "rank": ranks[name], **row}
        if questions:
            line |= {f"qa_{key}": questions[name][key] for key in ASKED}
        rows.append(line)
    return rows


def _switched(projector: Projector) -> Iterator[tuple[str, Projector]]:
    yield "trained", projector
    if not projector.config.hidden:
        return
    yield "trained, no residual", _zeroed(projector, ("spread",))
    yield "trained, no weighting (all 0.5)", _zeroed(projector, ("weigh.weight", "weigh.bias"))


@torch.no_grad()
def _zeroed(projector: Projector, names: Sequence[str]) -> Projector:
    """A copy whose parameters of these names are zero; a sigmoid makes 0.5 of that."""
    copy = deepcopy(projector)
    for name, parameter in copy.named_parameters():
        if name in names:
            parameter.zero_()
    return copy


def main() -> None:
    """Run the study from the command line."""
    files = {"text": study.TEXT, "qa": study.QA}
    study.run(measure, __doc__, files=files, folders={"bridge": study.BRIDGE})


if __name__ == "__main__":
    main()
