"""Many closed forms from one pair of Gram matrices: what each feature, and each width, is worth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unspoken.channels.bridges.audit.trial import Condition, Trial
from unspoken.channels.bridges.features import width, widths
from unspoken.channels.bridges.fit.example import sharer_rows, target_rows
from unspoken.channels.bridges.fit.initialization import start_from
from unspoken.channels.bridges.fit.ridge import Gram, Solution, choose_layers
from unspoken.channels.bridges.fit.samples import TokenizedSample, draw_samples, prepare
from unspoken.channels.bridges.projection import SINK, feature_rows, projected_state
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.data.text import Corpus
from unspoken.channels.kv.state import KVState, LayerState
from unspoken.channels.model import TextModel

__all__ = ["ClosedForms", "choose"]

Report = Callable[[float], None]


@torch.no_grad()
def choose(
    sharer: TextModel,
    receiver: TextModel,
    corpus: Corpus,
    counts: Sequence[int],
    *,
    embeddings: int = 2,
    messages: int = 10,
    seed: int = 0,
) -> dict[int, tuple[int, ...]]:
    """For each count, the sharer's layers that together explain the receiver's rows best."""
    samples = draw_samples(corpus.stream(seed), seed)
    tokenized = [prepare(next(samples), sharer, receiver) for _ in range(messages)]
    every = range(len(sharer.geometry.layers))
    plain = ProjectorConfig((), embeddings=embeddings)
    theirs = [sharer_rows(sample, sharer, every) for sample in tokenized]
    known = [
        feature_rows(plain, rows[:, :0], sample.ids, sample.at, receiver, None)
        for rows, sample in zip(theirs, tokenized, strict=True)
    ]
    layers = range(len(receiver.geometry.layers))
    targets = [
        target_rows(_read(sample, receiver, ())[0], sample, receiver, layers)
        for sample in tokenized
    ]
    blocks = list(torch.split(torch.cat(theirs), list(widths(sharer.geometry, every)), dim=1))
    most = max(counts, default=0)
    chosen = choose_layers(blocks, torch.cat(known), torch.cat(targets), most, seed=seed)
    return {count: tuple(sorted(chosen[:count])) for count in counts}


def _read(
    sample: TokenizedSample, receiver: TextModel, natives: Sequence[int]
) -> tuple[KVState, Mapping[int, Tensor]]:
    """The receiver's state of the whole context, and the message's hidden states at some layers."""
    ids = torch.tensor(sample.ids, device=receiver.device)
    prefill = receiver.prefill(ids, capture=natives)
    return prefill.state, {layer: prefill.hidden[layer][sample.at :] for layer in natives}


class ClosedForms:
    """Reduced-rank ridges from any part of the same features.

    Args:
        sharer: Whose cache is read.
        receiver: Whose cache is made.
        layers: All source layers that a form may read.
        embeddings: Most embeddings that a form may read.
        natives: Numbers of native layers that a form may have, 0 left out.
    """

    def __init__(
        self,
        sharer: TextModel,
        receiver: TextModel,
        layers: Sequence[int],
        *,
        embeddings: int = 2,
        natives: Sequence[int] = (),
    ) -> None:
        self.sharer, self.receiver = sharer, receiver
        self.wide = ProjectorConfig(tuple(layers), embeddings=embeddings, hidden=0)
        self.natives = tuple(natives)
        sizes = widths(sharer.geometry, layers)
        starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
        self._layers = {
            layer: range(start, start + size)
            for layer, start, size in zip(layers, starts, sizes, strict=False)
        }
        self._extra = starts[-1]
        hidden = receiver.geometry.hidden_size
        self.columns = self._extra + (embeddings + len(self.natives)) * hidden
        self._gram: Gram | None = None
        self._solved: tuple[list[int], Solution] | None = None
        self._held: dict[int, Tensor] = {}

    @torch.no_grad()
    def fit(
        self,
        corpus: Corpus,
        tokens: int,
        *,
        seed: int = 0,
        report: Report = lambda fraction: None,
    ) -> None:
        """Fill the Gram matrices from a corpus."""
        layers = range(len(self.receiver.geometry.layers))
        gram = Gram(self.columns, width(self.receiver.geometry, layers), self.receiver.device)
        for drawn in draw_samples(corpus.stream(seed), seed):
            sample = prepare(drawn, self.sharer, self.receiver)
            full, hidden = _read(sample, self.receiver, self.natives)
            skip = max(SINK - sample.at, 0)
            features = self._features(sample, hidden)
            if len(features) > skip:
                targets = target_rows(full, sample, self.receiver, layers)
                gram.add(features[skip:], targets[skip:])
            report(min(gram.count / tokens, 1.0))
            if gram.count >= tokens:
                break
        self._gram = gram

    def _features(self, sample: TokenizedSample, hidden: Mapping[int, Tensor]) -> Tensor:
        theirs = sharer_rows(sample, self.sharer, self.wide.source_layers)
        rows = feature_rows(self.wide, theirs, sample.ids, sample.at, self.receiver, None)
        return torch.cat([rows, *(hidden[layer].float() for layer in self.natives)], dim=1)

    def columns_of(self, config: ProjectorConfig) -> list[int]:
        """The columns that a configuration's projector reads, in its order."""
        hidden = self.receiver.geometry.hidden_size
        columns = [column for layer in config.source_layers for column in self._layers[layer]]
        columns += range(self._extra, self._extra + config.embeddings * hidden)
        if config.native_layers:
            place = self.wide.embeddings + self.natives.index(config.native_layers)
            start = self._extra + place * hidden
            columns += range(start, start + hidden)
        return columns

    def projector(self, config: ProjectorConfig, *, seed: int = 0) -> Projector:
        """The closed form of a configuration; a rank of 0 leaves it uncut.

        Raises:
            ValueError: Nothing was fitted yet.
        """
        if self._gram is None:
            raise ValueError("no rows to solve from")
        columns = self.columns_of(config)
        if self._solved is None or self._solved[0] != columns:
            self._solved = None
            where = torch.tensor(columns, device=self.receiver.device)
            self._solved = columns, self._gram.solve(where)
        solution = self._for_targets(self._solved[1], config)
        plain = replace(config, hidden=0, rank=config.rank or len(columns))
        projector = Projector(plain, self.sharer.geometry, self.receiver.geometry)
        projector = projector.to(self.receiver.device)
        if config.rank:
            start_from(projector, solution, *solution.cut(config.rank, seed=seed))
        else:
            eye = torch.eye(len(columns), device=self.receiver.device)
            start_from(projector, solution, eye, solution.full())
        return projector.eval().requires_grad_(False)

    def _for_targets(self, solution: Solution, config: ProjectorConfig) -> Solution:
        """The solution for the layers that are projected."""
        first = width(self.receiver.geometry, range(config.native_layers))
        if not first:
            return solution
        return replace(
            solution,
            half=solution.half[:, first:],
            offset=solution.offset[first:],
            deviation=solution.deviation[first:],
        )

    def ways(self, config: ProjectorConfig, projector: Projector) -> tuple[Condition, Condition]:
        """The state that a closed form makes, and the same from another example's message."""
        columns = torch.tensor(self.columns_of(config), device=self.receiver.device)
        theirs = width(self.sharer.geometry, config.source_layers)

        def make(trial: Trial, features: Tensor) -> KVState:
            native = tuple(
                LayerState(
                    layer.keys[:, trial.sample.at - layer.first :],
                    layer.values[:, trial.sample.at - layer.first :],
                    trial.sample.at,
                )
                for layer in trial.full.layers[: config.native_layers]
            )
            return projected_state(projector, features, native, trial.sample.at, self.receiver)

        def own(trial: Trial, other: Trial) -> KVState:
            return make(trial, self._of(trial)[:, columns])

        def misled(trial: Trial, other: Trial) -> KVState:
            mine, its = self._of(trial)[:, columns], self._of(other)[:, columns[:theirs]]
            rows = torch.arange(len(mine), device=mine.device) % len(its)
            return make(trial, torch.cat([its[rows], mine[:, theirs:]], dim=1))

        return own, misled

    def _of(self, trial: Trial) -> Tensor:
        """All features of a trial's message; those of the last few trials are kept."""
        if trial.index not in self._held:
            while len(self._held) > 2:
                self._held.pop(next(iter(self._held)))
            hidden = _read(trial.sample, self.receiver, self.natives)[1] if self.natives else {}
            self._held[trial.index] = self._features(trial.sample, hidden)
        return self._held[trial.index]

    def release(self) -> None:
        """Give the memory of the Gram matrices back; what was solved stays as it is."""
        self._gram = self._solved = None

    def forget(self) -> None:
        """Let go of what is kept of the trials, before those of another data set come."""
        self._held.clear()
