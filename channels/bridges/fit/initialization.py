"""What a bridge's training starts from: source layers, and the closed form that reads them."""

from collections.abc import Callable, Sequence
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
from unspoken.channels.bridges.projection import SINK, feature_rows
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.bridges.quantize import quantized_bytes
from unspoken.channels.data.text import Corpus
from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.geometry import CacheGeometry
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import TextModel
from unspoken.channels.model_size import Size, size_of

OTHER_SEED = 20_011
"""Added to a fit's seed for the messages that choose its penalty."""

TOKENS = 32_000
"""Tokens that a closed form is solved from, where six times the columns are fewer."""


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
    # All layers of the first ones are held, so they are short.
    few = islice(draw_samples(corpus.stream(seed), seed), 10)
    first = [prepare(drawn, sharer, receiver) for drawn in few]
    samples = draw_samples(corpus.stream(seed + 1), seed + 1, lengths)
    tokenized = (prepare(sample, sharer, receiver) for sample in samples)
    report(FitProgress(stage="layers", fraction=0.0))
    config = _configure(first, sharer, receiver, settings)
    inputs = sum(config.features(sharer.geometry, receiver.geometry))
    outputs = width(receiver.geometry, config.target_layers(receiver.geometry))
    if inputs > settings.columns:
        raise BridgeError(
            f"{len(config.source_layers)} source layers give {inputs} columns of features, and "
            f"their Gram matrices {gram_bytes(inputs, outputs) / 2**30:.1f} GiB",
            expected=f"at most {settings.columns} columns",
            fix="read fewer source layers: source_layers, or --source-layers",
        )
    gram = Gram(inputs, outputs, receiver.device)

    def rows(sample: TokenizedSample) -> tuple[Tensor, Tensor]:
        return rows_of(config, sample, sharer, receiver, receiver.read(sample.ids))

    def prepared(drawn: Sample) -> tuple[Tensor, Tensor]:
        return rows(prepare(drawn, sharer, receiver))

    wanted = settings.gram_tokens or tokens_for(inputs, TOKENS)
    hold_out(gram, corpus, seed, wanted, prepared, lengths)
    while gram.count < wanted:
        sample = first.pop() if first else next(tokenized)
        gram.add(*rows(sample))
        report(FitProgress(stage="gram", fraction=min(gram.count / wanted, 1.0)))
    report(FitProgress(stage="solve", fraction=0.0))
    solution = gram.solve()
    tokens = gram.count
    gram.release()
    projector = new_projector(config, sharer, receiver)
    encode, decode = solution.cut(config.rank, seed=settings.seed)
    start_from(projector, solution, encode, decode)
    return ClosedForm(
        projector=projector, tokens=tokens, penalty=solution.penalty, explained=solution.explained
    )


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


def peak_gigabytes(settings: FitSettings, sharer: TextModel, receiver: TextModel) -> float:
    """Memory that the closed form takes at most, in GB."""
    sizes = widths(sharer.geometry, range(len(sharer.geometry.layers)))
    layers, embeddings = within_columns(settings, sizes, receiver.geometry)
    extra = embeddings + (settings.native_layers > 0)
    inputs = sum(sorted(sizes)[-layers:]) + extra * receiver.geometry.hidden_size
    targets = range(settings.native_layers, len(receiver.geometry.layers))
    return gram_bytes(inputs, width(receiver.geometry, targets)) / 1e9


def _configure(
    samples: list[TokenizedSample], sharer: TextModel, receiver: TextModel, settings: FitSettings
) -> ProjectorConfig:
    """The projector's shape; its source layers are those that add most on a few messages."""
    sizes = widths(sharer.geometry, range(len(sharer.geometry.layers)))
    wanted, embeddings = within_columns(settings, sizes, receiver.geometry)
    chosen = explaining_layers(
        samples, sharer, receiver, embeddings=embeddings, most=wanted, seed=settings.seed
    )
    config = ProjectorConfig(
        source_layers=tuple(sorted(chosen)),
        native_layers=settings.native_layers,
        embeddings=embeddings,
        hidden=settings.hidden,
        bottleneck=settings.bottleneck,
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


def within_columns(
    settings: FitSettings, sizes: Sequence[int], receiver: CacheGeometry
) -> tuple[int, int]:
    """How many source layers and embeddings are read, within the columns also for wide models."""
    if settings.source_layers is not None:
        return min(settings.source_layers, len(sizes)), settings.embeddings
    size, width_of_one = max(sizes), receiver.hidden_size
    native = width_of_one if settings.native_layers else 0
    embeddings = settings.embeddings
    while embeddings > 1 and settings.columns - native - embeddings * width_of_one < 2 * size:
        embeddings -= 1
    room = (settings.columns - native - embeddings * width_of_one) // size
    return min(_layers_to_read(size), max(room, 1), len(sizes)), embeddings


def _layers_to_read(columns: int) -> int:
    """Source layers worth their products: where measured, a wider code kept more than they do."""
    return max(4, min(12, 1536 // columns))


BYTES = 15_950_000
"""What any bridge's weights may take: 16 MB with its manifest and its card."""

SHARE_OF_BYTES, SHARE_OF_PRODUCTS = 0.03, 0.1
"""Of the receiver's, what a larger bridge may take."""


LEAST = 512
"""Width of the code that a large pair gets even so."""


STEP = 32


def most_bytes(receiver: Size | None) -> int:
    """Bytes that the int8 weights of a bridge may take: 16 MB, or more for a large receiver.

    A weight of a bridge is a product a token, and a byte. So both shares are bounds of its bytes.
    The receiver's own bytes are counted at two a number, whatever type it is loaded in.
    """
    if receiver is None:
        return BYTES
    shares = SHARE_OF_BYTES * 2 * receiver.weights, SHARE_OF_PRODUCTS * receiver.products
    return max(BYTES, int(min(shares)))


def projector_bytes(config: ProjectorConfig, sharer: CacheGeometry, receiver: CacheGeometry) -> int:
    """Bytes of a projector's weights as int8."""
    with torch.device("meta"):  # only shapes are asked
        weights = Projector(config, sharer, receiver).state_dict()
    return sum(quantized_bytes(tensor.shape) for tensor in weights.values())


def widest_rank(
    config: ProjectorConfig, sharer: CacheGeometry, receiver: CacheGeometry, most: int = BYTES
) -> int:
    """The widest code, in steps of 32, with which the weights stay within `most` bytes.

    At least `LEAST`, and never more than there are features or targets.

    Args:
        config: The projector's; its rank is not read.
        sharer: Geometry of the sharer.
        receiver: Geometry of the receiver.
        most: Bytes as int8.
    """
    inputs = sum(config.features(sharer, receiver))
    full = min(inputs, width(receiver, config.target_layers(receiver)))
    # But for a few roundings, every column of the code adds the same.
    narrow, wide = (
        projector_bytes(replace(config, rank=rank), sharer, receiver) for rank in (2 * STEP, LEAST)
    )
    per_column = (wide - narrow) / (LEAST - 2 * STEP)
    fits = int((most - wide) / per_column) + LEAST
    return min(max(fits // STEP * STEP, LEAST), full)
