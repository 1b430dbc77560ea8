"""Fitting a fuser: encoders from a closed form, then training on how an input goes on."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from statistics import fmean
from time import monotonic
from typing import Any, ClassVar

import torch
from torch import Tensor

from unspoken.channels.bridges.fit.fuse_example import (
    FuseInput,
    answer_losses,
    contrast,
    fuse_input,
)
from unspoken.channels.bridges.fit.fuse_initialization import closed_form_fuser, new_fuser
from unspoken.channels.bridges.fit.fuse_samples import draw_fuse_samples
from unspoken.channels.bridges.fit.loop import Fit, Models, Progressed, weights_of
from unspoken.channels.bridges.fit.progress import Validation
from unspoken.channels.bridges.fit.samples import Sample, prepare
from unspoken.channels.bridges.fit.settings import FuseSettings
from unspoken.channels.bridges.fuser import Fuser, FuserConfig
from unspoken.channels.bridges.manifest import Figures
from unspoken.channels.bridges.projection import SINK
from unspoken.channels.kv.geometry import CacheGeometry


@dataclass(frozen=True, slots=True)
class Gains:
    """Per kind of answer, the share of the receiver's own validation loss that is gone."""

    by_kind: Mapping[str, float]

    @property
    def score(self) -> float:
        """Their mean."""
        return fmean(self.by_kind.values())

    def to_dict(self) -> Mapping[str, float]:
        return self.by_kind

    def describe(self) -> str:
        """By kind, in a few words."""
        return ", ".join(f"{name} {value:+.3f}" for name, value in self.by_kind.items())


class FuserFit(Fit[Fuser, FuseInput, FuseSettings]):
    """A fuser's fit; the receiver as its own sharer is a control, not a special case.

    Where training never helped, the result is the start, which changes nothing.
    """

    kind: ClassVar[str] = "fuse"
    solved: ClassVar[tuple[str, str]] = ("encode", "own_encode")
    weight_decay: ClassVar[float] = 0.01

    @cached_property
    def config(self) -> FuserConfig:
        """The fuser's configuration, by the settings."""
        settings, (sharer, receiver) = self.settings, self.models
        return FuserConfig(
            source_layers=_spread(sharer.geometry, settings.source_layers),
            own_layers=_spread(receiver.geometry, settings.own_layers),
            rank=settings.rank,
            own_rank=settings.own_rank,
            hidden=settings.hidden,
            bottleneck=settings.bottleneck,
            last=settings.last,
        )

    def start(self) -> tuple[Fuser, Progressed, None]:
        """The closed form; it leaves the receiver's cache as it is, so it needs no validation."""
        began, settings = monotonic(), self.settings
        inputs = (given for _, given in self._inputs(settings.seed, self.models))
        fuser, tokens = closed_form_fuser(self.config, *self.models, inputs, settings, self.report)
        weights = weights_of(fuser)
        progressed = Progressed(
            config=self.config.to_dict(),
            weights=weights,
            best=weights,
            best_score=0.0,
            tokens=tokens,
            closed_seconds=monotonic() - began,
        )
        return fuser, progressed, None

    def build(self, config: dict[str, Any]) -> Fuser:
        return new_fuser(self.config, *self.models)

    def draw(self, progressed: Progressed) -> Iterator[FuseInput]:
        """Inputs that were not learnt from yet."""
        seed = self.settings.seed + 1
        for drawn, given in self._inputs(seed, self.train_models, progressed.drawn):
            progressed.drawn = drawn
            progressed.tokens += given.sample.tokens
            yield given

    def _inputs(self, seed: int, models: Models, drawn: int = 0) -> Iterator[tuple[int, FuseInput]]:
        samples = draw_fuse_samples(self.corpus.stream(seed), seed)
        return self._read(samples, models, drawn)

    def _read(
        self, samples: Iterator[Sample], models: Models, drawn: int = 0
    ) -> Iterator[tuple[int, FuseInput]]:
        """Inputs of the samples after the first `drawn`, each with the number of its sample."""
        for number, drawn_sample in enumerate(islice(samples, drawn, None), drawn + 1):
            sample = prepare(drawn_sample, *models, longest=32)
            if len(sample.ids) > max(sample.at, SINK) + 1 and sample.targets:
                yield number, fuse_input(self.config, sample, *models)

    def loss(self, module: Fuser, given: FuseInput) -> Tensor:
        """Cross-entropy of the right answers and, of a question, over its options."""
        with torch.enable_grad():
            losses = answer_losses(module, given, self.train_models[1], grad=True)
            kinds = [target.kind for target in given.sample.targets]
            right = [loss for loss, kind in zip(losses, kinds, strict=True) if kind != "wrong"]
            loss = torch.stack(right).mean()
            if "wrong" in kinds:
                loss = loss + self.settings.contrast * contrast(losses)
            return loss

    def validator(self) -> Callable[[Fuser], Validation]:
        """Gains over the receiver alone on inputs that the fit does not learn from."""
        samples = draw_fuse_samples(self.corpus.held_out(), 10_007, validation=True)
        read = islice(self._read(samples, self.models), self.settings.validation)
        inputs = [given for _, given in read]
        alone = self._losses(None, inputs)

        def validate(fuser: Fuser) -> Gains:
            losses = self._losses(fuser, inputs)
            return Gains({name: 1 - losses[name] / alone[name] for name in alone})

        return validate

    @torch.no_grad()
    def _losses(self, fuser: Fuser | None, inputs: list[FuseInput]) -> dict[str, float]:
        """Mean loss per kind of answer, and over the options of questions."""
        by_kind: dict[str, list[float]] = {}
        for given in inputs:
            losses = answer_losses(fuser, given, self.receiver)
            kinds = [target.kind for target in given.sample.targets]
            for loss, kind in zip(losses, kinds, strict=True):
                if kind != "wrong":
                    by_kind.setdefault(kind, []).append(float(loss))
            if "wrong" in kinds:
                by_kind.setdefault("options", []).append(float(contrast(losses)))
        return {name: fmean(values) for name, values in sorted(by_kind.items())}

    def figures(self, progressed: Progressed) -> Figures:
        closed, total = progressed.minutes()
        gains = progressed.best_scores.items()
        return {
            "fuse_minutes": self.settings.minutes,
            "fuse_minutes_closed_form": closed,
            "fuse_minutes_total": total,
            "fuse_steps": progressed.step,
            **{f"fuse_held_out_gain_{name}": round(value, 4) for name, value in gains},
        }


def _spread(geometry: CacheGeometry, count: int) -> tuple[int, ...]:
    """Up to `count` layers at even distances, the last one among them."""
    total = len(geometry.layers)
    chosen = min(count, total)
    return tuple(sorted({total - 1 - (total * n) // chosen for n in range(chosen)}))
