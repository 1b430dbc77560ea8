"""Many closed forms from one pair of Gram matrices: what each feature, and each width, is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice

import torch
from torch import Tensor

from unspoken.channels.bridges.audit.controls import projector_of
from unspoken.channels.bridges.audit.trial import Condition, Trial
from unspoken.channels.bridges.features import width, widths
from unspoken.channels.bridges.fit.example import sharer_rows, target_rows
from unspoken.channels.bridges.fit.initialization import (
    explaining_layers,
    hold_out,
    new_projector,
    start_from,
)
from unspoken.channels.bridges.fit.ridge import Gram, Solution
from unspoken.channels.bridges.fit.samples import Sample, TokenizedSample, draw_samples, prepare
from unspoken.channels.bridges.projection import SINK, feature_rows, projected_state
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.data.text import Corpus
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import Prefill, TextModel

EMBEDDINGS = 2
"""Most of the receiver's embeddings that a form may read."""


@torch.no_grad()
def choose(
    sharer: TextModel,
    receiver: TextModel,
    corpus: Corpus,
    counts: Sequence[int],
    *,
    messages: int = 10,
) -> dict[int, tuple[int, ...]]:
    """For each count, the sharer's layers that together explain the receiver's rows best."""
    samples = islice(draw_samples(corpus.stream(), 0), messages)
    tokenized = [prepare(sample, sharer, receiver) for sample in samples]
    order = explaining_layers(tokenized, sharer, receiver, embeddings=EMBEDDINGS, most=max(counts))
    return {count: tuple(sorted(order[:count])) for count in counts}


class ClosedForms:
    """Reduced-rank ridges from any part of the same features.

    Args:
        sharer: Whose cache is read.
        receiver: Whose cache is made.
        layers: All source layers that a form may read.
        natives: Numbers of native layers that a form may have, 0 left out.
    """

    def __init__(
        self,
        sharer: TextModel,
        receiver: TextModel,
        layers: Sequence[int],
        *,
        natives: Sequence[int] = (),
    ) -> None:
        self.sharer, self.receiver = sharer, receiver
        self.wide = ProjectorConfig(source_layers=tuple(layers), embeddings=EMBEDDINGS, hidden=0)
        self.natives = tuple(natives)
        # Columns stand in this order: source layers, embeddings, native layers.
        sizes = [*widths(sharer.geometry, layers)]
        sizes += [receiver.geometry.hidden_size] * (EMBEDDINGS + len(self.natives))
        *starts, self.columns = torch.tensor([0, *sizes]).cumsum(0).tolist()
        self._blocks = [
            range(start, start + size) for start, size in zip(starts, sizes, strict=True)
        ]
        self._gram: Gram | None = None
        self._solved: tuple[tuple[list[int], float | None], Solution] | None = None
        self._features_of = lru_cache(maxsize=3)(self._features)  # large; trials come in order

    @torch.no_grad()
    def fit(self, corpus: Corpus, tokens: int) -> None:
        """Fill the Gram matrices from a corpus."""
        layers = range(len(self.receiver.geometry.layers))
        gram = Gram(self.columns, width(self.receiver.geometry, layers), self.receiver.device)

        def rows(drawn: Sample) -> tuple[Tensor, Tensor]:
            sample = prepare(drawn, self.sharer, self.receiver)
            read, skip = self._read(sample), max(SINK - sample.at, 0)
            targets = target_rows(read.state, sample, self.receiver, layers)
            return self._joined(sample, read.hidden)[skip:], targets[skip:]

        hold_out(gram, corpus, 0, tokens, rows)
        for drawn in draw_samples(corpus.stream(), 0):
            gram.add(*rows(drawn))
            if gram.count >= tokens:
                break
        self._gram = gram

    def _read(self, sample: TokenizedSample) -> Prefill:
        ids = torch.tensor(sample.ids, device=self.receiver.device)
        return self.receiver.prefill(ids, capture=self.natives)

    def _features(self, sample: TokenizedSample) -> Tensor:
        return self._joined(sample, self._read(sample).hidden if self.natives else {})

    def _joined(self, sample: TokenizedSample, hidden: Mapping[int, Tensor]) -> Tensor:
        """All features of a message, (tokens, columns)."""
        theirs = sharer_rows(sample, self.sharer, self.wide.source_layers)
        rows = feature_rows(self.wide, theirs, sample.ids, sample.at, self.receiver, None)
        native = [hidden[layer][sample.at :].float() for layer in self.natives]
        return torch.cat([rows, *native], dim=1)

    def columns_of(self, config: ProjectorConfig) -> list[int]:
        """The columns that a configuration's projector reads, in its order."""
        source = len(self.wide.source_layers)
        blocks = [self.wide.source_layers.index(layer) for layer in config.source_layers]
        blocks += range(source, source + config.embeddings)
        if config.native_layers:
            blocks.append(source + EMBEDDINGS + self.natives.index(config.native_layers))
        return [column for block in blocks for column in self._blocks[block]]

    def projector(self, config: ProjectorConfig, penalty: float | None = None) -> Projector:
        """The closed form of a configuration; a rank of 0 leaves it uncut.

        Args:
            config: The configuration.
            penalty: The ridge's; chosen on held-out messages if not given.

        Raises:
            ValueError: Nothing was fitted yet.
        """
        solution = self._projected_part(self.solution(config, penalty), config)
        if config.rank:
            return projector_of(config, solution, self.sharer, self.receiver)
        columns = len(solution.mean)
        uncut = replace(config, hidden=0, rank=columns)
        projector = new_projector(uncut, self.sharer, self.receiver)
        eye = torch.eye(columns, device=self.receiver.device)
        start_from(projector, solution, eye, solution.full())
        return projector.eval().requires_grad_(False)

    def solution(self, config: ProjectorConfig, penalty: float | None = None) -> Solution:
        """The solved ridge of a configuration's features, for all layers of the receiver.

        Raises:
            ValueError: Nothing was fitted yet.
        """
        if self._gram is None:
            raise ValueError("no rows to solve from")
        asked = self.columns_of(config), penalty
        if self._solved is None or self._solved[0] != asked:
            self._solved = None  # gives its memory back first
            places = torch.tensor(asked[0], device=self.receiver.device)
            self._solved = asked, self._gram.solve(places, penalty)
        return self._solved[1]

    def _projected_part(self, solution: Solution, config: ProjectorConfig) -> Solution:
        """The solution for the layers that are projected."""
        first = width(self.receiver.geometry, range(config.native_layers))
        return replace(
            solution,
            half=solution.half[:, first:],
            offset=solution.offset[first:],
            deviation=solution.deviation[first:],
        )

    def conditions(
        self, config: ProjectorConfig, projector: Projector
    ) -> tuple[Condition, Condition]:
        """The state that a closed form makes, and the same from another example's message."""
        columns = torch.tensor(self.columns_of(config), device=self.receiver.device)
        theirs = width(self.sharer.geometry, config.source_layers)

        def made(trial: Trial, features: Tensor) -> KVState:
            at, full = trial.sample.at, trial.full
            native = full.slice(at, full.stop).layers[: config.native_layers]
            return projected_state(projector, features, native, at, self.receiver)

        def matched(trial: Trial, other: Trial) -> KVState:
            return made(trial, self._features_of(trial.sample)[:, columns])

        def mismatched(trial: Trial, other: Trial) -> KVState:
            ours = self._features_of(trial.sample)[:, columns]
            rows = self._features_of(other.sample)[:, columns[:theirs]]
            cycle = torch.arange(len(ours), device=ours.device) % len(rows)
            return made(trial, torch.cat([rows[cycle], ours[:, theirs:]], dim=1))

        return matched, mismatched

    def release(self) -> None:
        """Give the memory of the Gram matrices back; what was solved stays as it is."""
        self._gram = self._solved = None
