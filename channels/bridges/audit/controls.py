"""What a bridge is held against: messages that say nothing, and maps refitted on other features."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from unspoken.channels.bridges.audit.trial import Trial, Way
from unspoken.channels.bridges.features import width
from unspoken.channels.bridges.fit.example import Example, example, target_rows
from unspoken.channels.bridges.fit.initialization import start_from
from unspoken.channels.bridges.fit.ridge import Gram, Solution
from unspoken.channels.bridges.fit.samples import Sample, TokenizedSample, teach
from unspoken.channels.bridges.fit.validation import swapped
from unspoken.channels.bridges.projection import SINK, projected_state
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.data.text import Corpus
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import TextModel

__all__ = ["BRIDGE", "MISMATCHED", "Controls", "own_case", "projector_of", "ways_of"]

BRIDGE, MISMATCHED = "bridge", "another example's message"
COLUMNS = 12_288


def own_case(case: TokenizedSample, full: KVState) -> TokenizedSample:
    """A case whose sharer is the receiver itself, by its own state of the whole context."""
    rows = torch.arange(case.at, len(case.ids), device=full.device)
    return replace(case, state=full, rows=rows)


def read_alone(lesson: Sample, receiver: TextModel) -> TokenizedSample:
    """A lesson's message as the receiver alone reads it, without tails."""
    frame = receiver.frame(lesson.frame)
    ids = (*frame.before, *receiver.words(lesson.text)[0])
    full = receiver.read(ids)
    at = len(frame.before)
    return TokenizedSample(ids, at, full, torch.arange(at, len(ids), device=full.device), ())


def projector_of(
    config: ProjectorConfig,
    solution: Solution | None,
    sharer: TextModel,
    receiver: TextModel,
    *,
    seed: int = 0,
) -> Projector:
    """The closed form of a solution, as a projector without a residual; None gives the one that
    maps all to zero.
    """
    plain = replace(config, hidden=0)
    made = Projector(plain, sharer.geometry, receiver.geometry).to(receiver.device)
    if solution is not None:
        encode, decode = solution.cut(plain.rank, seed=seed)
        start_from(made, solution, encode, decode)
    return made.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
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
        tokens: int = 12_000,
        seed: int = 0,
    ) -> "Controls":
        """Refit both from one pair of Gram matrices.

        Args:
            config: The bridge's.
            sharer: The bridge's sharer; only its geometry is read.
            receiver: The receiver.
            corpus: Text to fit on.
            tokens: Receiver tokens to fit on.
            seed: Of the text's order.
        """
        extra = config.features(sharer.geometry, receiver.geometry)[1]
        layers = _spaced(config, receiver, COLUMNS - extra)
        own = replace(config, source_layers=layers)
        alone = replace(config, source_layers=())
        targets = config.target_layers(receiver.geometry)
        inputs = width(receiver.geometry, layers)
        gram = Gram(inputs + extra, width(receiver.geometry, targets), receiver.device)
        for lesson in teach(corpus.stream(seed), seed + 31):
            case = read_alone(lesson, receiver)
            made = example(own, case, receiver, receiver, case.state, teach=False)
            skip = max(SINK - case.at, 0)
            rows = target_rows(case.state, case, receiver, targets)
            if len(rows) > skip:
                gram.add(made.features[skip:].float(), rows[skip:])
            if gram.count >= tokens:
                break
        columns = torch.arange(inputs, inputs + extra, device=receiver.device)
        solved = gram.solve(columns) if extra else None
        fitted = projector_of(alone, solved, sharer, receiver, seed=seed)
        if not extra:  # nothing to map from: the mean of the targets
            fitted.offset.copy_(gram.solve().offset)
        return cls(
            fitted,
            projector_of(own, gram.solve(), receiver, receiver, seed=seed),
            receiver,
            width(sharer.geometry, config.source_layers),
        )

    def ways(self) -> Mapping[str, Way]:
        """The two ways, by name."""

        def without(trial: Trial, other: Trial) -> KVState:
            features = trial.made.features[:, self.columns :]
            return _project(self.alone, replace(trial.made, features=features), self.receiver)

        def itself(trial: Trial, other: Trial) -> KVState:
            case, model = own_case(trial.case, trial.full), self.receiver
            config = self.itself.config
            made = example(config, case, model, model, trial.full, teach=False)
            return _project(self.itself, made, model)

        return {"without the sharer": without, "the receiver as its own sharer": itself}


def _spaced(config: ProjectorConfig, receiver: TextModel, columns: int) -> tuple[int, ...]:
    """As many of the receiver's layers as the bridge reads of its sharer's, evenly spread, within
    the columns.
    """
    count = len(receiver.geometry.layers)
    wanted = min(max(len(config.source_layers), 1), count)
    while True:
        step = (count - 1) / max(wanted - 1, 1)
        layers = tuple(sorted({round(n * step) for n in range(wanted)}))
        if wanted == 1 or width(receiver.geometry, layers) <= columns:
            return layers
        wanted -= 1


def _project(projector: Projector, made: Example, receiver: TextModel) -> KVState:
    return projected_state(projector, made.features, made.native, made.at, receiver)


def ways_of(
    projector: Projector, columns: int, receiver: TextModel, *, seed: int = 0
) -> dict[str, Way]:
    """The bridge itself, and the bridge with a message that says nothing of this example.

    Args:
        projector: The bridge's.
        columns: Columns of its features that come of its sharer.
        receiver: The receiver.
        seed: Of the noise.
    """

    def bridge(trial: Trial, other: Trial) -> KVState:
        return _project(projector, trial.made, receiver)

    def mismatched(trial: Trial, other: Trial) -> KVState:
        return _project(projector, swapped(trial.made, other.made, columns), receiver)

    def zeros(trial: Trial, other: Trial) -> KVState:
        features = trial.made.features.clone()
        features[:, :columns] = 0
        return _project(projector, replace(trial.made, features=features), receiver)

    def noise(trial: Trial, other: Trial) -> KVState:
        features = trial.made.features.clone()
        own = features[:, :columns].float()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + trial.index)
        drawn = torch.randn(own.shape, generator=generator).to(own.device)
        spread = own.std(dim=0, correction=0)
        features[:, :columns] = (own.mean(dim=0) + spread * drawn).to(features.dtype)
        return _project(projector, replace(trial.made, features=features), receiver)

    return {BRIDGE: bridge, MISMATCHED: mismatched, "zeros": zeros, "noise": noise}
