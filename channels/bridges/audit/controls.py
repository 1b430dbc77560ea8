"""What a bridge is compared with: messages that say nothing, and maps of other features."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unspoken.channels.bridges.audit.trial import Condition, Trial
from unspoken.channels.bridges.features import width
from unspoken.channels.bridges.fit.example import Example, features_of
from unspoken.channels.bridges.fit.initialization import (
    hold_out,
    new_projector,
    rows_of,
    start_from,
)
from unspoken.channels.bridges.fit.ridge import Gram, Solution, tokens_for
from unspoken.channels.bridges.fit.samples import Sample, TokenizedSample, draw_samples
from unspoken.channels.bridges.fit.validation import swapped
from unspoken.channels.bridges.projection import projected_state
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.data.text import Corpus
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import TextModel

__all__ = ["BRIDGE", "MISMATCHED", "Controls", "as_own_sharer", "conditions_of", "projector_of"]

BRIDGE, MISMATCHED = "bridge", "another example's message"
COLUMNS = 12_288
TOKENS = 12_000
"""Tokens that the refitted maps are solved from, where six times their columns are fewer."""


def as_own_sharer(sample: TokenizedSample, full: KVState) -> TokenizedSample:
    """A sample whose sharer is the receiver itself, by its own state of the whole context."""
    rows = torch.arange(sample.at, len(sample.ids), device=full.device)
    return replace(sample, state=full, rows=rows)


def read_alone(sample: Sample, receiver: TextModel) -> TokenizedSample:
    """A sample's message as the receiver alone reads it, without targets."""
    frame = receiver.frame(sample.frame)
    ids, at = (*frame.before, *receiver.words(sample.text)[0]), len(frame.before)
    full = receiver.read(ids)
    rows = torch.arange(at, len(ids), device=full.device)
    return TokenizedSample(ids=ids, at=at, state=full, rows=rows)


def projector_of(
    config: ProjectorConfig,
    solution: Solution | None,
    sharer: TextModel,
    receiver: TextModel,
    *,
    seed: int = 0,
) -> Projector:
    """The closed form as a projector without a residual; None gives one that maps all to zero."""
    projector = new_projector(replace(config, hidden=0), sharer, receiver)
    if solution is not None:
        encode, decode = solution.cut(config.rank, seed=seed)
        start_from(projector, solution, encode, decode)
    return projector.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False, kw_only=True)
class Controls:
    """Two maps of the bridge's rank, fitted without its sharer.

    Attributes:
        alone: From the receiver's own features: embeddings, and what its native layers make.
        itself: From the receiver's own rows, as if it were its own sharer, and the same features.
        receiver: The receiver.
        columns: Columns of the bridge's features that come of its sharer.
    """

    alone: Projector
    itself: Projector
    receiver: TextModel
    columns: int

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        config: ProjectorConfig,
        sharer: TextModel,
        receiver: TextModel,
        corpus: Corpus,
        *,
        tokens: int | None = None,
        seed: int = 0,
    ) -> "Controls":
        """Refit both from one pair of Gram matrices.

        Args:
            config: The bridge's.
            sharer: The bridge's sharer; only its geometry is read.
            receiver: The receiver.
            corpus: Text to fit on.
            tokens: Receiver tokens to fit on; None for six times the columns, and 12,000 at least.
            seed: Of the text's order.
        """
        extra = config.features(sharer.geometry, receiver.geometry)[1]
        layers = _spaced(config, receiver, COLUMNS - extra)
        of_itself = replace(config, source_layers=layers, sketch=0)
        alone = replace(config, source_layers=(), sketch=0)
        targets = config.target_layers(receiver.geometry)
        inputs = width(receiver.geometry, layers)
        wanted = tokens or tokens_for(inputs + extra, TOKENS)
        gram = Gram(inputs + extra, width(receiver.geometry, targets), receiver.device)

        def rows(drawn: Sample) -> tuple[Tensor, Tensor]:
            sample = read_alone(drawn, receiver)
            return rows_of(of_itself, sample, receiver, receiver, sample.state)

        hold_out(gram, corpus, seed + 31, wanted, rows)
        for drawn in draw_samples(corpus.stream(seed), seed + 31):
            gram.add(*rows(drawn))
            if gram.count >= wanted:
                break
        columns = torch.arange(inputs, inputs + extra, device=receiver.device)
        solved = gram.solve(columns) if extra else None
        fitted = projector_of(alone, solved, sharer, receiver, seed=seed)
        if not extra:  # nothing to map from: the mean of the targets
            fitted.offset.copy_(gram.solve().offset)
        return cls(
            alone=fitted,
            itself=projector_of(of_itself, gram.solve(), receiver, receiver, seed=seed),
            receiver=receiver,
            columns=width(sharer.geometry, config.source_layers),
        )

    def conditions(self) -> Mapping[str, Condition]:
        """The two, by name."""

        def without(trial: Trial, other: Trial) -> KVState:
            features = trial.example.features[:, self.columns :]
            return _project(self.alone, replace(trial.example, features=features), self.receiver)

        def itself(trial: Trial, other: Trial) -> KVState:
            sample, model = as_own_sharer(trial.sample, trial.full), self.receiver
            features, native = features_of(self.itself.config, sample, model, model)
            return projected_state(self.itself, features, native, sample.at, model)

        return {"without the sharer": without, "the receiver as its own sharer": itself}


def _spaced(config: ProjectorConfig, receiver: TextModel, columns: int) -> tuple[int, ...]:
    """As many of the receiver's layers as the bridge reads of its sharer's, within the columns."""
    count = len(receiver.geometry.layers)
    wanted = min(max(len(config.source_layers), 1), count)
    while True:
        step = (count - 1) / max(wanted - 1, 1)
        layers = tuple(sorted({round(n * step) for n in range(wanted)}))
        if wanted == 1 or width(receiver.geometry, layers) <= columns:
            return layers
        wanted -= 1


def _project(projector: Projector, ex: Example, receiver: TextModel) -> KVState:
    return projected_state(projector, ex.features, ex.native, ex.at, receiver)


def conditions_of(
    projector: Projector, columns: int, receiver: TextModel, *, seed: int = 0
) -> dict[str, Condition]:
    """The bridge itself, and the bridge with a message that says nothing of this example.

    Args:
        projector: The bridge's.
        columns: Columns of its features that come of its sharer.
        receiver: The receiver.
        seed: Of the noise.
    """

    def bridge(trial: Trial, other: Trial) -> KVState:
        return _project(projector, trial.example, receiver)

    def mismatched(trial: Trial, other: Trial) -> KVState:
        return _project(projector, swapped(trial.example, other.example, columns), receiver)

    def zeros(trial: Trial, other: Trial) -> KVState:
        features = trial.example.features.clone()
        features[:, :columns] = 0
        return _project(projector, replace(trial.example, features=features), receiver)

    def noise(trial: Trial, other: Trial) -> KVState:
        features = trial.example.features.clone()
        sharers = features[:, :columns].float()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + trial.index)
        drawn = torch.randn(sharers.shape, generator=generator).to(sharers.device)
        spread = sharers.std(dim=0, correction=0)
        features[:, :columns] = (sharers.mean(dim=0) + spread * drawn).to(features.dtype)
        return _project(projector, replace(trial.example, features=features), receiver)

    return {BRIDGE: bridge, MISMATCHED: mismatched, "zeros": zeros, "noise": noise}
