"""Fitting a bridge: choose source layers, solve the closed form, then train on what the full text
makes likely.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from unspoken.channels.bridges.fit.checkpoint import (
    Checkpoint,
    fingerprint,
    peak_memory_gb,
    schedule,
    seeded,
    weights_of,
)
from unspoken.channels.bridges.fit.example import (
    Example,
    answer_loss,
    divergence,
    example,
    head_of,
    student,
)
from unspoken.channels.bridges.fit.initialization import closed_form_projector, new_projector
from unspoken.channels.bridges.fit.progress import FitProgress, FitReport
from unspoken.channels.bridges.fit.samples import prepare, teach
from unspoken.channels.bridges.fit.settings import FitSettings
from unspoken.channels.bridges.fit.validation import ValidationSet
from unspoken.channels.bridges.projection import SINK, projected_state
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.data.text import Corpus
from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import TextModel

__all__ = ["FitResult", "check_pair", "fit"]


@dataclass(frozen=True, eq=False)
class FitResult:
    """A fitted projector.

    Attributes:
        projector: The best weights met.
        figures: Minutes, tokens, steps and held-out scores, as a manifest's ``fit`` holds them.
        tokens: Receiver tokens seen.
    """

    projector: Projector
    figures: dict[str, float | int | str | None]
    tokens: int


def check_pair(sharer: TextModel, receiver: TextModel) -> None:
    """Refuse models whose keys cannot be made bare.

    Raises:
        BridgeError: naming the model.
    """
    for name, model in (("sharer", sharer), ("receiver", receiver)):
        for rope in {layer.rope for layer in model.geometry.layers}:
            if model.rotary(rope).dynamic:
                raise BridgeError(
                    f"the {name}'s rotary frequencies change with the length of the context",
                    expected="rotary embeddings with fixed frequencies (default, linear, yarn, "
                    "llama3)",
                    fix="use a text channel for this pair",
                )
        if not model.shifts_keys:
            raise BridgeError(
                f"the {name}'s keys are not rotated the way its rotary module says",
                expected="keys that can be made bare and rotated again",
                fix="use a text channel for this pair",
            )


def fit(
    sharer: TextModel,
    receiver: TextModel,
    corpus: Corpus,
    settings: FitSettings,
    work: Path | None = None,
    report: FitReport = lambda progress: None,
    *,
    train_models: tuple[TextModel, TextModel] | None = None,
) -> FitResult:
    """Fit a projector for a pair of models.

    Args:
        sharer: Whose cache is read.
        receiver: Whose cache is made; its weights stay as they are.
        corpus: Plain text.
        settings: How.
        work: A folder for what a killed fit goes on from; None keeps nothing.
        report: Called now and then.
        train_models: The same two models in a cheaper dtype, to train and to judge on; the closed
            form uses the models themselves.

    Raises:
        BridgeError: The models cannot be bridged, or the features are more than `settings.columns`.
    """
    check_pair(sharer, receiver)
    with seeded(settings.seed, receiver.device):
        return _Fit(sharer, receiver, corpus, settings, work, report, train_models).run()


@dataclass(eq=False)
class _Progressed:
    """What a killed fit goes on from."""

    config: dict[str, Any]
    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    best_score: float
    optimizer: dict[str, Any] | None = None
    step: int = 0
    seconds: float = 0.0
    closed_seconds: float = 0.0
    closed_peak_gb: float | None = None
    tokens: int = 0
    closed_scores: dict[str, float] = field(default_factory=dict)
    rounds_without: int = 0


class _Fit:
    def __init__(
        self,
        sharer: TextModel,
        receiver: TextModel,
        corpus: Corpus,
        settings: FitSettings,
        work: Path | None,
        report: FitReport,
        train_models: tuple[TextModel, TextModel] | None,
    ) -> None:
        self.train_models = train_models or (sharer, receiver)
        self.sharer, self.receiver, self.corpus = sharer, receiver, corpus
        self.settings, self.report = settings, report
        dtypes = [model.dtype for model in (sharer, receiver, *self.train_models)]
        made_of = fingerprint(settings, corpus.digest, dtypes)
        self.checkpoint = Checkpoint.of(work, "fit", made_of)
        self.rng = random.Random(settings.seed)
        self._heads: dict[tuple[int, ...], KVState] = {}

    def run(self) -> FitResult:
        sharer, receiver, began = self.sharer, self.receiver, monotonic()
        saved = self._load()
        if saved is None:
            projector, closed = closed_form_projector(
                sharer, receiver, self.corpus, self.settings, self.report
            )
            closed_seconds, closed_peak = monotonic() - began, peak_memory_gb()
            held = self._held_out(projector.config)
            scores = held.score(projector)
            if not math.isfinite(scores.score):
                raise BridgeError(
                    f"the held-out score is {scores.score}: the models' logits are not finite in "
                    f"{self.train_models[1].dtype}",
                    expected="finite logits",
                    fix="fit with --train-dtype bfloat16, or without it",
                )
            saved = _Progressed(
                projector.config.to_dict(),
                weights_of(projector),
                weights_of(projector),
                scores.score,
                closed_seconds=closed_seconds,
                closed_peak_gb=closed_peak,
                tokens=closed,
                closed_scores=scores.to_dict(),
            )
            self._save(saved)
            self.report(FitProgress("train", 0.0, scores=scores))
        else:
            projector = new_projector(ProjectorConfig.from_dict(saved.config), sharer, receiver)
            projector.load_state_dict(saved.weights)
            held = self._held_out(projector.config)
        if self.settings.minutes > 0 and self.settings.steps != 0:
            self._train(projector, saved, held)
        projector.load_state_dict(saved.best)
        figures: dict[str, float | int | str | None] = {
            "fit_minutes_closed_form": round(saved.closed_seconds / 60, 2),
            "fit_minutes_total": round((saved.closed_seconds + saved.seconds) / 60, 2),
            "peak_memory_closed_form_gb": saved.closed_peak_gb,
            "steps": saved.step,
            "held_out_score": round(saved.best_score, 4),
            **{
                f"closed_form_{name}": round(value, 4)
                for name, value in saved.closed_scores.items()
            },
        }
        self.report(FitProgress("done", 1.0))
        return FitResult(projector, figures, saved.tokens)

    # -- training

    def _held_out(self, config: ProjectorConfig) -> ValidationSet:
        # A corpus of one document holds nothing out: its scores then say less, and the audit's own
        # rows judge.
        stream = replace(self.corpus, train=self.corpus.held_out or self.corpus.train).stream(0)
        lessons = teach(stream, seed=10_007)
        return ValidationSet.make(config, lessons, *self.train_models)

    def _examples(self, config: ProjectorConfig, seed: int) -> Iterator[Example]:
        sharer, receiver = self.train_models
        for lesson in teach(self.corpus.stream(seed), seed):
            case = prepare(lesson, sharer, receiver)
            yield example(config, case, sharer, receiver, receiver.read(case.ids))

    def _train(self, projector: Projector, saved: _Progressed, held: ValidationSet) -> None:
        settings = self.settings
        solved = [projector.encode, projector.decode]
        others = [one for one in projector.parameters() if all(one is not two for two in solved)]
        optimizer = torch.optim.AdamW(
            [
                {"params": solved, "lr": settings.rate},
                {"params": others, "lr": settings.residual_rate},
            ],
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )
        rates = [group["lr"] for group in optimizer.param_groups]
        if saved.optimizer is not None:
            optimizer.load_state_dict(saved.optimizer)
        examples = self._examples(projector.config, settings.seed + 1 + saved.step)
        pool: list[Example] = []
        total = torch.zeros((), device=self.receiver.device)
        since = 0
        began = last = monotonic()
        before = saved.seconds
        while (part := self._part(saved)) < 1 and saved.rounds_without < settings.patience:
            if len(pool) < 8 or saved.step % settings.fresh == 0:
                made = next(examples)
                saved.tokens += len(made.features)
                pool = [*pool[-settings.pool + 1 :], made]
            else:
                made = self.rng.choice(pool)
            loss = self._loss(projector, made)
            torch.autograd.backward(loss / settings.batch)
            total += loss.detach()
            since += 1
            saved.step += 1
            if saved.step % settings.batch == 0:
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * schedule(saved.step / settings.batch, part)
                torch.nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            saved.seconds = before + monotonic() - began
            if monotonic() - last > settings.every or self._part(saved) >= 1:
                scores = held.score(projector)
                saved.rounds_without += 1
                if scores.score > saved.best_score:
                    saved.best, saved.best_score = weights_of(projector), scores.score
                    saved.rounds_without = 0
                saved.weights, saved.optimizer = weights_of(projector), optimizer.state_dict()
                saved.seconds = before + monotonic() - began
                self._save(saved)
                self.report(FitProgress("train", part, float(total) / since, scores))
                total.zero_()
                since, last = 0, monotonic()

    def _part(self, saved: _Progressed) -> float:
        """How much of the training is done, by time or by steps."""
        by_time = saved.seconds / (60 * self.settings.minutes)
        by_steps = saved.step / self.settings.steps if self.settings.steps else 0.0
        return max(by_time, by_steps)

    def _loss(self, projector: Projector, made: Example) -> Tensor:
        receiver = self.train_models[1]
        head = self._head(made)
        with torch.enable_grad():
            state = projected_state(projector, made.features, made.native, made.at, receiver)
            said = student(receiver, made, state, head, grad=True)
            losses = [
                divergence(logs, known) + self.settings.likelihood * answer_loss(logs, tail, count)
                for logs, known, (tail, count) in zip(said, made.taught, made.tails, strict=True)
            ]
            return torch.stack(losses).mean()

    def _head(self, made: Example) -> KVState:
        """The receiver's own state before the message; that of a template is computed once."""
        if made.at < SINK:
            return head_of(self.train_models[1], made.ids, made.at)
        before = made.ids[: made.at]
        if before not in self._heads:
            self._heads[before] = head_of(self.train_models[1], made.ids, made.at)
        return self._heads[before]

    # -- going on after a kill

    def _load(self) -> _Progressed | None:
        found = self.checkpoint.load(self.receiver.device)
        try:
            return None if found is None else _Progressed(**found)
        except TypeError:  # of another version
            return None

    def _save(self, saved: _Progressed) -> None:
        self.checkpoint.save(vars(saved))
