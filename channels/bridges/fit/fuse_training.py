"""Fitting a fuser: encoders from a closed form, then trained on what follows an input that both
models have read.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from unspoken.channels.bridges.fit.checkpoint import (
    Checkpoint,
    fingerprint,
    schedule,
    seeded,
    weights_of,
)
from unspoken.channels.bridges.fit.fuse_example import FuseInput, contrast, fuse_input, tail_losses
from unspoken.channels.bridges.fit.fuse_initialization import closed_form_fuser, new_fuser
from unspoken.channels.bridges.fit.fuse_samples import teach_fusing
from unspoken.channels.bridges.fit.progress import FuseProgress, FuseReport
from unspoken.channels.bridges.fit.samples import Sample, prepare
from unspoken.channels.bridges.fit.settings import FuseSettings
from unspoken.channels.bridges.fit.training import check_pair
from unspoken.channels.bridges.fuser import Fuser, FuserConfig
from unspoken.channels.bridges.projection import SINK
from unspoken.channels.data.text import Corpus
from unspoken.channels.kv.geometry import CacheGeometry
from unspoken.channels.model import TextModel

__all__ = ["FuseResult", "fit_fuser"]

DEFAULT = FuseSettings()
"""How a fuser is fitted where nobody says."""


@dataclass(frozen=True, eq=False)
class FuseResult:
    """A fitted fuser.

    Attributes:
        fuser: The best weights met; those of the start, which change nothing, where training never
            helped.
        figures: Minutes, steps and held-out gains, as a manifest's ``fit`` holds them.
        tokens: Receiver tokens seen.
    """

    fuser: Fuser
    figures: dict[str, float | int | str | None]
    tokens: int


def fit_fuser(
    sharer: TextModel,
    receiver: TextModel,
    corpus: Corpus,
    settings: FuseSettings = DEFAULT,
    report: FuseReport = lambda progress: None,
    *,
    work: Path | None = None,
    train_models: tuple[TextModel, TextModel] | None = None,
) -> FuseResult:
    """Fit a fuser for a pair of models; the receiver as its own sharer is a control, not a special
    case.

    Args:
        sharer: Whose cache is read.
        receiver: Whose cache is enriched; its weights stay as they are.
        corpus: Plain text.
        settings: How.
        report: Called now and then.
        work: A folder for what a killed fit goes on from; None keeps nothing.
        train_models: The same two models in a cheaper dtype, to take the training steps on; the
            closed form and the held-out rounds use the models themselves.

    Raises:
        BridgeError: Keys of one of the models cannot be made bare.
    """
    check_pair(sharer, receiver)
    with seeded(settings.seed, receiver.device):
        return _FuseFit(sharer, receiver, corpus, settings, report, work, train_models).run()


@dataclass(eq=False)
class _Progressed:
    """What a killed fit goes on from; `drawn` says how far the lessons were read."""

    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    best_score: float = 0.0
    gain: dict[str, float] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    step: int = 0
    drawn: int = 0
    rounds_without: int = 0
    tokens: int = 0
    seconds: float = 0.0
    closed_seconds: float = 0.0


class _FuseFit:
    def __init__(
        self,
        sharer: TextModel,
        receiver: TextModel,
        corpus: Corpus,
        settings: FuseSettings,
        report: FuseReport,
        work: Path | None,
        train_models: tuple[TextModel, TextModel] | None,
    ) -> None:
        self.models, self.train_models = (sharer, receiver), train_models or (sharer, receiver)
        self.receiver, self.corpus = receiver, corpus
        self.settings, self.report = settings, report
        self.config = FuserConfig(
            _spread(sharer.geometry, settings.source_layers),
            _spread(receiver.geometry, settings.own_layers),
            settings.rank,
            settings.own_rank,
            settings.hidden,
            settings.bottleneck,
            settings.last,
        )
        dtypes = [model.dtype for model in (*self.models, *self.train_models)]
        made_of = fingerprint(settings, corpus.digest, dtypes)
        self.checkpoint = Checkpoint.of(work, "fuse", made_of)

    def run(self) -> FuseResult:
        settings, began = self.settings, monotonic()
        saved = self._load()
        if saved is None:
            fuser, tokens = closed_form_fuser(
                self.config,
                *self.models,
                self._inputs(settings.seed, self.models),
                settings,
                self.report,
            )
            weights, seconds = weights_of(fuser), monotonic() - began
            saved = _Progressed(weights, weights, tokens=tokens, closed_seconds=seconds)
            self.checkpoint.save(vars(saved))
        else:
            fuser = new_fuser(self.config, *self.models)
            fuser.load_state_dict(saved.weights)
        if settings.minutes > 0 and settings.steps != 0:
            self._train(fuser, saved)
        fuser.load_state_dict(saved.best)
        fuser.eval().requires_grad_(False)
        figures: dict[str, float | int | str | None] = {
            "fuse_minutes": settings.minutes,
            "fuse_minutes_closed_form": round(saved.closed_seconds / 60, 2),
            "fuse_minutes_total": round((saved.closed_seconds + saved.seconds) / 60, 2),
            "fuse_steps": saved.step,
            **{f"fuse_held_out_gain_{name}": round(one, 4) for name, one in saved.gain.items()},
        }
        self.report(FuseProgress("done", 1.0, gain=saved.gain or None))
        return FuseResult(fuser, figures, saved.tokens)

    def _load(self) -> _Progressed | None:
        found = self.checkpoint.load(self.receiver.device)
        try:
            return None if found is None else _Progressed(**found)
        except TypeError:  # of another version
            return None

    def _inputs(
        self, seed: int, models: tuple[TextModel, TextModel], drawn: int = 0
    ) -> Iterator[tuple[int, FuseInput]]:
        return self._read(teach_fusing(self.corpus.stream(seed), seed), models, drawn)

    def _read(
        self, lessons: Iterator[Sample], models: tuple[TextModel, TextModel], drawn: int = 0
    ) -> Iterator[tuple[int, FuseInput]]:
        """Inputs of the lessons after the first `drawn`, each with how many lessons were drawn by
        then.
        """
        for number, lesson in enumerate(islice(lessons, drawn, None), drawn + 1):
            case = prepare(lesson, *models, longest=32)
            if len(case.ids) > max(case.at, SINK) + 1 and case.tails:
                yield number, fuse_input(self.config, case, *models)

    # -- training

    def _train(self, fuser: Fuser, saved: _Progressed) -> None:
        """Train until the time, the steps or the patience is spent; the best weights stand in
        `saved`.
        """
        settings = self.settings
        inputs = self._inputs(settings.seed + 1, self.train_models, saved.drawn)
        held = self._held_out()
        alone = self._losses(None, held)
        optimizer = self._optimizer(fuser)
        if saved.optimizer is not None:
            optimizer.load_state_dict(saved.optimizer)
        total = torch.zeros((), device=self.receiver.device)
        since, before = 0, saved.seconds
        began = last = monotonic()
        while (part := self._part(saved)) < 1 and saved.rounds_without < settings.patience:
            saved.drawn, made = next(inputs)
            loss = self._loss(fuser, made, self.train_models[1])
            torch.autograd.backward(loss / settings.batch)
            total += loss.detach()
            saved.tokens += made.case.tokens
            saved.step, since = saved.step + 1, since + 1
            whole = saved.step % settings.batch == 0
            if whole:
                self._update(fuser, optimizer, schedule(saved.step / settings.batch, part))
            saved.seconds = before + monotonic() - began
            # Between batches, so that no gradient is lost where a fit goes on.
            if (whole and monotonic() - last > settings.every) or self._part(saved) >= 1:
                losses = self._losses(fuser, held)
                gain = {name: 1 - losses[name] / alone[name] for name in alone}
                self._judge(fuser, saved, gain)
                saved.optimizer = optimizer.state_dict()
                saved.seconds = before + monotonic() - began
                self.checkpoint.save(vars(saved))
                self.report(FuseProgress("train", part, float(total) / since, gain))
                total.zero_()
                since, last = 0, monotonic()

    def _optimizer(self, fuser: Fuser) -> torch.optim.Optimizer:
        encoders = fuser.encoders()
        others = [one for one in fuser.parameters() if all(one is not two for two in encoders)]
        return torch.optim.AdamW(
            [
                {"params": encoders, "lr": self.settings.rate},
                {"params": others, "lr": self.settings.residual_rate},
            ],
            betas=(0.9, 0.98),
            weight_decay=0.01,
        )

    def _update(self, fuser: Fuser, optimizer: torch.optim.Optimizer, rate: float) -> None:
        tops = (self.settings.rate, self.settings.residual_rate)
        for group, top in zip(optimizer.param_groups, tops, strict=True):
            group["lr"] = rate * top
        torch.nn.utils.clip_grad_norm_(fuser.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _judge(self, fuser: Fuser, saved: _Progressed, gain: dict[str, float]) -> None:
        """Note the weights, and whether they are the best so far."""
        saved.weights = weights_of(fuser)
        saved.rounds_without += 1
        if (score := fmean(gain.values())) > saved.best_score:
            saved.best, saved.best_score, saved.gain = saved.weights, score, gain
            saved.rounds_without = 0

    def _part(self, saved: _Progressed) -> float:
        """How much of the training is done, by time or by steps."""
        by_time = saved.seconds / (60 * self.settings.minutes)
        by_steps = saved.step / self.settings.steps if self.settings.steps else 0.0
        return max(by_time, by_steps)

    def _loss(self, fuser: Fuser, made: FuseInput, receiver: TextModel) -> Tensor:
        with torch.enable_grad():
            said = tail_losses(fuser, made, receiver, grad=True)
            right = [x for x, kind in zip(said, made.case.kinds, strict=True) if kind != "wrong"]
            loss = torch.stack(right).mean()
            if "wrong" in made.case.kinds:
                loss = loss + self.settings.contrast * contrast(said)
            return loss

    def _held_out(self) -> list[FuseInput]:
        stream = replace(self.corpus, train=self.corpus.held_out or self.corpus.train).stream(0)
        lessons = teach_fusing(stream, 10_007, held_out=True)
        return [
            made for _, made in islice(self._read(lessons, self.models), self.settings.held_out)
        ]

    @torch.no_grad()
    def _losses(self, fuser: Fuser | None, held: Sequence[FuseInput]) -> dict[str, float]:
        """Mean held-out loss per kind of tail, and over the options of questions."""
        found: dict[str, list[float]] = {}
        for made in held:
            said = tail_losses(fuser, made, self.receiver)
            for loss, kind in zip(said, made.case.kinds, strict=True):
                if kind != "wrong":
                    found.setdefault(kind, []).append(float(loss))
            if "wrong" in made.case.kinds:
                found.setdefault("options", []).append(float(contrast(said)))
        return {name: fmean(values) for name, values in sorted(found.items())}


def _spread(geometry: CacheGeometry, count: int) -> tuple[int, ...]:
    """Up to `count` layers at even distances, the last one among them."""
    total = len(geometry.layers)
    kept = min(count, total)
    return tuple(sorted({total - 1 - (total * n) // kept for n in range(kept)}))
