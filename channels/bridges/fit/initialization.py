"""What a bridge's training starts from: source layers, and the closed form that reads them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn

from unspoken.channels.bridges.features import width, widths
from unspoken.channels.bridges.fit.example import features_of, sharer_rows, target_rows
from unspoken.channels.bridges.fit.progress import FitProgress, FitReport
from unspoken.channels.bridges.fit.ridge import (
    HELD,
    Gram,
    Solution,
    choose_layers,
    gram_bytes,
    tokens_for,
)
from unspoken.channels.bridges.fit.samples import (
    Lengths,
    Sample,
    TokenizedSample,
    draw_samples,
    prepare,
)
from unspoken.channels.bridges.fit.settings import FitSettings
from unspoken.channels.bridges.fit.sizing import TOKENS, most_bytes, widest_rank, within_columns
from unspoken.channels.bridges.projection import SINK, feature_rows
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.data.text import Corpus
from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import TextModel
from unspoken.channels.model_size import size_of

TOKENS_PER_COMPONENT = 8
"""Tokens that a sketch is made from, for each column of its widest block."""

OTHER_SEED = 20_011
"""Added to a fit's seed for the messages that choose its penalty."""


def new_projector(config: ProjectorConfig, sharer: TextModel, receiver: TextModel) -> Projector:
    """An unfitted projector between two models, on the receiver's device."""
    return Projector(config, sharer.geometry, receiver.geometry).to(receiver.device)


@dataclass(frozen=True, eq=False, kw_only=True)
class ClosedForm:
    """A projector in closed form.

    Attributes:
        projector: The projector.
        tokens: Tokens that it was solved from.
        penalty: The ridge's λ.
        explained: R² of the held-out messages that chose it, the map uncut; None without any.
    """

    projector: Projector
    tokens: int
    penalty: float
    explained: float | None

    def figures(self) -> dict[str, float]:
        """What a manifest says of it."""
        explained = {} if self.explained is None else {"explained": self.explained}
        return {"penalty": self.penalty, "tokens": self.tokens, **explained}


def closed_form(
    sharer: TextModel, receiver: TextModel, corpus: Corpus, settings: FitSettings, report: FitReport
) -> ClosedForm:
    """A projector in closed form.

    Raises:
        BridgeError: The features are more than `FitSettings.columns`.
    """
    lengths, seed = Lengths.of(settings.longest, sharer, receiver), settings.seed
    samples = draw_samples(corpus.stream(seed), seed, lengths)
    tokenized = (prepare(sample, sharer, receiver) for sample in samples)
    report(FitProgress(stage="layers", fraction=0.0))
    # All layers of these are held, so they are short.
    few = islice(draw_samples(corpus.stream(seed), seed), 10)
    read = [prepare(drawn, sharer, receiver) for drawn in few]
    config = _configure(read, sharer, receiver, settings)
    read.clear()
    inputs = sum(config.inputs(sharer.geometry, receiver.geometry))
    outputs = width(receiver.geometry, config.target_layers(receiver.geometry))
    if inputs > settings.columns:
        raise BridgeError(
            f"{len(config.source_layers)} source layers give {inputs} columns of features, and "
            f"their Gram matrices {gram_bytes(inputs, outputs) / 2**30:.1f} GiB",
            expected=f"at most {settings.columns} columns",
            fix="read fewer source layers, or less of each: --source-layers, --sketch",
        )
    projector = new_projector(config, sharer, receiver)
    if config.sketch:
        report(FitProgress(stage="sketch", fraction=0.0))
        take_sketch(projector, tokenized, sharer, receiver)
    gram = Gram(inputs, outputs, receiver.device)

    def rows(sample: TokenizedSample) -> tuple[Tensor, Tensor]:
        features, targets = rows_of(config, sample, sharer, receiver, receiver.read(sample.ids))
        return projector.sketched(features), targets

    def prepared(drawn: Sample) -> tuple[Tensor, Tensor]:
        return rows(prepare(drawn, sharer, receiver))

    wanted = settings.gram_tokens or tokens_for(inputs, TOKENS)
    hold_out(gram, corpus, seed, wanted, prepared, lengths)
    while gram.count < wanted:
        gram.add(*rows(next(tokenized)))
        report(FitProgress(stage="gram", fraction=min(gram.count / wanted, 1.0)))
    report(FitProgress(stage="solve", fraction=0.0))
    solution = gram.solve()
    tokens = gram.count
    gram.release()
    encode, decode = solution.cut(config.rank, seed=settings.seed)
    start_from(projector, solution, encode, decode)
    return ClosedForm(
        projector=projector, tokens=tokens, penalty=solution.penalty, explained=solution.explained
    )


@torch.no_grad()
def take_sketch(
    projector: Projector, samples: Iterator[TokenizedSample], sharer: TextModel, receiver: TextModel
) -> None:
    """Give a projector the principal components of each block of its features.

    Args:
        projector: The projector, with a sketch.
        samples: Messages, of which some are read.
        sharer, receiver: Its models.
    """
    config, device = projector.config, receiver.device
    blocks = config.blocks(sharer.geometry, receiver.geometry)
    grams = [Gram(size, 0, device) for size, _ in blocks]
    wanted = TOKENS_PER_COMPONENT * max(count for _, count in blocks)
    while grams[0].count < wanted:
        features, _ = features_of(config, next(samples), sharer, receiver)
        parts = torch.split(features, [size for size, _ in blocks], dim=1)
        for gram, part in zip(grams, parts, strict=True):
            gram.add(part, part[:, :0])
    found = [gram.components(count) for gram, (_, count) in zip(grams, blocks, strict=True)]
    projector.origin.copy_(torch.cat([mean for mean, _ in found]))
    for number, (_, components) in enumerate(found):
        projector.get_buffer(f"sketch_{number}").copy_(components)


def hold_out(
    gram: Gram,
    corpus: Corpus,
    seed: int,
    tokens: int,
    rows: Callable[[Sample], tuple[Tensor, Tensor]],
    lengths: Lengths | None = None,
) -> None:
    """Give a Gram matrix the messages that choose its penalty.

    They are of text that is not solved from, and what is generated of them has a seed of its own.

    Args:
        gram: The matrix.
        corpus: What it is solved from.
        seed: That of what it is solved from.
        tokens: Tokens that it is solved from; an eighth of them is held out, `HELD` at most.
        rows: Features and targets of a message.
        lengths: How long the messages are; see `draw_samples`.
    """
    for drawn in draw_samples(corpus.held_out(seed), seed + OTHER_SEED, lengths):
        gram.hold(*rows(drawn))
        if gram.held >= min(HELD, tokens // 8):
            return


def rows_of(
    config: ProjectorConfig,
    sample: TokenizedSample,
    sharer: TextModel,
    receiver: TextModel,
    full: KVState,
) -> tuple[Tensor, Tensor]:
    """A message's features, and the receiver's own rows of it in `full`, each (tokens, columns).

    The first `SINK` positions of a context are left out.
    """
    features, _ = features_of(config, sample, sharer, receiver)
    rows = target_rows(full, sample, receiver, config.target_layers(receiver.geometry))
    skip = max(SINK - sample.at, 0)
    return features[skip:], rows[skip:]


@torch.no_grad()
def start_from(projector: Projector, solution: Solution, encode: Tensor, decode: Tensor) -> None:
    """Give a projector the closed form's weights; its residual begins at nothing.

    Args:
        projector: The projector.
        solution: The solved ridge, for means and standard deviations.
        encode: (features, rank).
        decode: (rank, targets).
    """
    for name in ("mean", "scale", "offset", "deviation"):
        getattr(projector, name).copy_(getattr(solution, name))
    projector.encode.copy_(encode)
    projector.decode.copy_(decode)
    if projector.config.hidden:
        projector.code_scale.copy_(1 / solution.spread(encode))
        nn.init.normal_(projector.down.weight, std=projector.config.hidden**-0.5)
        nn.init.zeros_(projector.weigh.weight)
        nn.init.zeros_(projector.spread)


def _configure(
    samples: list[TokenizedSample], sharer: TextModel, receiver: TextModel, settings: FitSettings
) -> ProjectorConfig:
    """The projector's shape; its source layers are those that add most on a few messages."""
    sizes = widths(sharer.geometry, range(len(sharer.geometry.layers)))
    shape = within_columns(settings, sizes, receiver.geometry)
    chosen = explaining_layers(
        samples,
        sharer,
        receiver,
        embeddings=shape.embeddings,
        most=shape.layers,
        seed=settings.seed,
    )
    config = ProjectorConfig(
        source_layers=tuple(sorted(chosen)),
        native_layers=settings.native_layers,
        embeddings=shape.embeddings,
        hidden=settings.hidden,
        bottleneck=settings.bottleneck,
        sketch=shape.sketch,
    )
    most = most_bytes(size_of(receiver))
    rank = settings.rank or widest_rank(config, sharer.geometry, receiver.geometry, most)
    return replace(config, rank=rank)


def explaining_layers(
    samples: Sequence[TokenizedSample],
    sharer: TextModel,
    receiver: TextModel,
    *,
    embeddings: int,
    most: int,
    seed: int = 0,
) -> tuple[int, ...]:
    """The sharer's layers that together explain the receiver's rows best, the first one first."""
    every = range(len(sharer.geometry.layers))
    rows = [sharer_rows(sample, sharer, every).to(receiver.device) for sample in samples]
    plain = ProjectorConfig(source_layers=(), embeddings=embeddings)
    known = [
        feature_rows(plain, theirs[:, :0], sample.ids, sample.at, receiver, None)
        for theirs, sample in zip(rows, samples, strict=True)
    ]
    layers = range(len(receiver.geometry.layers))
    targets = [
        target_rows(receiver.read(sample.ids), sample, receiver, layers) for sample in samples
    ]
    blocks = list(torch.split(torch.cat(rows), list(widths(sharer.geometry, every)), dim=1))
    return choose_layers(blocks, torch.cat(known), torch.cat(targets), most, seed=seed)
