"""Fitting a projector: the closed form, then training on what the full text makes likely."""

import math
import random
from collections.abc import Callable, Iterator
from functools import cached_property
from time import monotonic
from typing import Any, ClassVar

import torch
from torch import Tensor

from unspoken.channels.bridges.fit.checkpoint import peak_memory_gb
from unspoken.channels.bridges.fit.example import (
    Example,
    answer_loss,
    divergence,
    example,
    head_of,
    student,
)
from unspoken.channels.bridges.fit.initialization import closed_form, new_projector
from unspoken.channels.bridges.fit.loop import Fit, Progressed, weights_of
from unspoken.channels.bridges.fit.progress import Validation
from unspoken.channels.bridges.fit.samples import Lengths, draw_samples, prepare
from unspoken.channels.bridges.fit.settings import FitSettings
from unspoken.channels.bridges.fit.validation import ValidationSet
from unspoken.channels.bridges.manifest import Figures
from unspoken.channels.bridges.projection import SINK, projected_state
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.state import KVState

POOLED = 230
"""Tokens of a message, by which the size of a pool is counted."""


class ProjectorFit(Fit[Projector, Example, FitSettings]):
    """A projector's fit: its teacher is the receiver itself, after the full text.

    The teacher's distributions are computed once per message. Most steps draw a message from a pool
    of those met, since a new one costs a pass of both models.
    """

    kind: ClassVar[str] = "fit"
    solved: ClassVar[tuple[str, str]] = ("encode", "decode")
    weight_decay: ClassVar[float] = 0.0
    config: ProjectorConfig

    def start(self) -> tuple[Projector, Progressed, Validation]:
        """The closed form, and its validation.

        Raises:
            BridgeError: The features are more than `FitSettings.columns`, or no logit is finite.
        """
        began = monotonic()
        form = closed_form(*self.models, self.corpus, self.settings, self.report)
        projector = form.projector
        seconds, peak = monotonic() - began, peak_memory_gb()
        self.config = projector.config
        scores = self.validation.score(projector)
        if not math.isfinite(scores.score):
            raise BridgeError(
                f"the held-out score is {scores.score}: the models' logits are not finite in "
                f"{self.train_models[1].dtype}",
                expected="finite logits",
                fix="fit with train_dtype bfloat16, or without it",
            )
        weights = weights_of(projector)
        progressed = Progressed(
            config=self.config.to_dict(),
            weights=weights,
            best=weights,
            best_score=scores.score,
            closed_scores={**scores.to_dict(), **form.figures()},
            tokens=form.tokens,
            closed_seconds=seconds,
            closed_peak_gb=peak,
        )
        return projector, progressed, scores

    def build(self, config: dict[str, Any]) -> Projector:
        self.config = ProjectorConfig.from_dict(config)
        return new_projector(self.config, *self.models)

    @cached_property
    def lengths(self) -> Lengths | None:
        """How long the messages are."""
        return Lengths.of(self.settings.longest, *self.models)

    @cached_property
    def validation(self) -> ValidationSet:
        """Samples that the fit does not learn from."""
        samples = draw_samples(self.corpus.held_out(), 10_007, self.lengths)
        return ValidationSet.make(self.config, samples, *self.train_models)

    def validator(self) -> Callable[[Projector], Validation]:
        return self.validation.score

    def draw(self, progressed: Progressed) -> Iterator[Example]:
        """Every few steps a new message, else one of the pool."""
        settings, rng = self.settings, random.Random(self.settings.seed)
        fresh = self._fresh(settings.seed + 1 + progressed.step)
        pool: list[Example] = []
        while True:
            if len(pool) < 8 or progressed.step % settings.fresh == 0:
                new = next(fresh)
                progressed.tokens += len(new.features)
                pool = newest([*pool, new], settings.pool * POOLED)
                yield new
            else:
                yield rng.choice(pool)

    def _fresh(self, seed: int) -> Iterator[Example]:
        sharer, receiver = self.train_models
        for drawn in draw_samples(self.corpus.stream(seed), seed, self.lengths):
            sample = prepare(drawn, sharer, receiver)
            yield example(self.config, sample, sharer, receiver, receiver.read(sample.ids))

    def loss(self, module: Projector, given: Example) -> Tensor:
        """KL to the teacher and, with less weight, the cross-entropy of the answers."""
        receiver, likelihood = self.train_models[1], self.settings.likelihood
        head = self._head(given)
        with torch.enable_grad():
            state = projected_state(module, given.features, given.native, given.at, receiver)
            said = student(receiver, given, state, head, grad=True)
            losses = [
                divergence(logs, known) + likelihood * answer_loss(logs, target)
                for logs, known, target in zip(said, given.teacher, given.targets, strict=True)
            ]
            return torch.stack(losses).mean()

    @cached_property
    def _heads(self) -> dict[tuple[int, ...], KVState]:
        return {}

    def _head(self, given: Example) -> KVState:
        """The receiver's own state before the message; that of a template is computed once."""
        if given.at < SINK:
            return head_of(self.train_models[1], given.ids, given.at)
        before = given.ids[: given.at]
        if before not in self._heads:
            self._heads[before] = head_of(self.train_models[1], given.ids, given.at)
        return self._heads[before]

    def figures(self, progressed: Progressed) -> Figures:
        closed, total = progressed.minutes()
        scores = progressed.closed_scores.items()
        return {
            "fit_minutes_closed_form": closed,
            "fit_minutes_total": total,
            "peak_memory_closed_form_gb": progressed.closed_peak_gb,
            "steps": progressed.step,
            "held_out_score": round(progressed.best_score, 4),
            "train_dtype": str(self.train_models[1].dtype).removeprefix("torch."),
            **{name: getattr(self.settings, name) for name in FitSettings.learning},
            **{f"closed_form_{name}": round(value, 4) for name, value in scores},
        }


def newest(pool: list[Example], tokens: int) -> list[Example]:
    """The last examples of a pool that together have at most so many tokens; one at least."""
    first, held = len(pool) - 1, len(pool[-1].features)
    while first and (held := held + len(pool[first - 1].features)) <= tokens:
        first -= 1
    return pool[first:]
