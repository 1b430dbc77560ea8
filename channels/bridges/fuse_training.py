"""Fitting a fuser: encoders from a closed form, then trained on what follows an input that both models have read."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from time import monotonic

import torch
from torch import Tensor

from unspoken.channels.bridges.corpus import Corpus
from unspoken.channels.bridges.example import SINK
from unspoken.channels.bridges.features import width
from unspoken.channels.bridges.fuse_example import FuseInput, contrast, fuse_input, tail_losses
from unspoken.channels.bridges.fuse_lessons import teach_fusing
from unspoken.channels.bridges.fuser import Fuser, FuserConfig
from unspoken.channels.bridges.lessons import Lesson, prepare
from unspoken.channels.bridges.randomness import seeded
from unspoken.channels.bridges.reader import TextModel
from unspoken.channels.bridges.ridge import Gram, Solution
from unspoken.channels.bridges.training import check_pair
from unspoken.channels.geometry import CacheGeometry

__all__ = ["FuseProgress", "FuseResult", "FuseSettings", "fit_fuser"]


BULK = 1000
"""Tokens that are added to a Gram matrix at a time."""


@dataclass(frozen=True, slots=True)
class FuseSettings:
    """How a fuser is fitted.

    Attributes:
        minutes: Most minutes of training, its held-out rounds included; 0 leaves the receiver's cache as it is.
        steps: Most training steps, one input each; None for as many as the minutes allow.
        source_layers, own_layers: How many layers of either model are read, spread evenly up to the last.
        rank, own_rank, hidden, bottleneck: Widths; see `FuserConfig`.
        last: Whether every token gets the sharer's code of the last token too.
        gram_tokens: Tokens that the encoders are solved from.
        batch: Inputs per update.
        rate: Learning rate of the encoders.
        residual_rate: Learning rate of all else.
        contrast: Weight of the cross-entropy over a question's options beside that over the tail's tokens.
        held_out: Held-out inputs.
        patience: Held-out rounds without a gain until training stops.
        every: Seconds between held-out rounds.
        seed: Of all that is drawn.
    """

    minutes: float = 20.0
    steps: int | None = None
    source_layers: int = 6
    own_layers: int = 6
    rank: int = 256
    own_rank: int = 128
    hidden: int = 768
    bottleneck: int = 192
    last: bool = True
    gram_tokens: int = 6_000
    batch: int = 6
    rate: float = 1e-4
    residual_rate: float = 1e-3
    contrast: float = 0.5
    held_out: int = 72
    patience: int = 6
    every: float = 60.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FuseProgress:
    """Where a fit stands.

    Attributes:
        stage: ``gram``, ``train`` or ``done``.
        fraction: Done of the stage, 0 to 1.
        loss: Training loss since the last report, where there is one.
        gain: Per kind of lesson, the share of the receiver's own held-out loss that is gone.
    """

    stage: str
    fraction: float
    loss: float | None = None
    gain: dict[str, float] | None = None


@dataclass(frozen=True, eq=False)
class FuseResult:
    """A fitted fuser.

    Attributes:
        fuser: The best weights met; those of the start, which change nothing, where training never helped.
        figures: Minutes, steps and held-out gains, as a manifest's ``fit`` holds them.
        tokens: Receiver tokens seen.
    """

    fuser: Fuser
    figures: dict[str, float | int | str | None]
    tokens: int


Report = Callable[[FuseProgress], None]


def fit_fuser(
    sharer: TextModel,
    receiver: TextModel,
    corpus: Corpus,
    settings: FuseSettings = FuseSettings(),
    report: Report = lambda progress: None,
    *,
    light: tuple[TextModel, TextModel] | None = None,
) -> FuseResult:
    """Fit a fuser for a pair of models; the receiver as its own sharer is a control, not a special case.

    Args:
        sharer: Whose cache is read.
        receiver: Whose cache is enriched; its weights stay as they are.
        corpus: Plain text.
        settings: How.
        report: Called now and then.
        light: The same two models in a cheaper dtype, to take the training steps on; the closed form and the
            held-out rounds use the models themselves.

    Raises:
        BridgeError: Keys of one of the models cannot be made bare.
    """
    check_pair(sharer, receiver)
    with seeded(settings.seed, receiver.device):
        return _FuseFit(sharer, receiver, corpus, settings, report, light).run()


class _FuseFit:
    def __init__(
        self,
        sharer: TextModel,
        receiver: TextModel,
        corpus: Corpus,
        settings: FuseSettings,
        report: Report,
        light: tuple[TextModel, TextModel] | None,
    ) -> None:
        self.models, self.light = (sharer, receiver), light or (sharer, receiver)
        self.sharer, self.receiver, self.corpus = sharer, receiver, corpus
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
        self.tokens = 0

    def run(self) -> FuseResult:
        settings, began = self.settings, monotonic()
        fuser = self._closed_form(self._inputs(settings.seed, self.models))
        closed = monotonic() - began
        steps, gain = 0, dict[str, float]()
        if settings.minutes > 0 and settings.steps != 0:
            steps, gain = self._train(fuser, self._inputs(settings.seed + 1, self.light))
        fuser.eval().requires_grad_(False)
        figures: dict[str, float | int | str | None] = {
            "fuse_minutes": settings.minutes,
            "fuse_minutes_closed_form": round(closed / 60, 2),
            "fuse_minutes_total": round((monotonic() - began) / 60, 2),
            "fuse_steps": steps,
            **{f"fuse_held_out_gain_{name}": round(value, 4) for name, value in gain.items()},
        }
        self.report(FuseProgress("done", 1.0, gain=gain or None))
        return FuseResult(fuser, figures, self.tokens)

    def _inputs(self, seed: int, models: tuple[TextModel, TextModel]) -> Iterator[FuseInput]:
        return self._read(teach_fusing(self.corpus.stream(seed), seed), models)

    def _read(
        self, lessons: Iterator[Lesson], models: tuple[TextModel, TextModel]
    ) -> Iterator[FuseInput]:
        for lesson in lessons:
            case = prepare(lesson, *models, longest=32)
            if len(case.ids) > max(case.at, SINK) + 1 and case.tails:
                self.tokens += case.tokens
                yield fuse_input(self.config, case, *models)

    # -- closed form

    @torch.no_grad()
    def _closed_form(self, inputs: Iterator[FuseInput]) -> Fuser:
        """Encoders of either model's rows: the directions that say most of the receiver's rows, and of its own."""
        config, receiver = self.config, self.receiver
        geometry = receiver.geometry
        fuser = Fuser(config, self.sharer.geometry, geometry).to(receiver.device)
        mine = width(geometry, config.own_layers)
        outputs = width(geometry, range(len(geometry.layers)))
        theirs = Gram(width(self.sharer.geometry, config.source_layers), outputs, receiver.device)
        own = Gram(mine, mine, receiver.device)
        while theirs.count < self.settings.gram_tokens:
            # In bulk: each addition goes over the whole matrices.
            rows = _bulk(inputs, min(self.settings.gram_tokens - theirs.count, BULK))
            theirs.add(*rows)
            chosen = rows[1].index_select(1, fuser._columns)
            own.add(chosen, chosen)
            self.report(FuseProgress("gram", min(theirs.count / self.settings.gram_tokens, 1.0)))
        solution = theirs.solve()
        fuser.encode.copy_(_encoder(solution, config.rank, self.settings.seed))
        fuser.mean.copy_(solution.mean)
        fuser.inverse.copy_(solution.scale)
        fuser.deviation.copy_(solution.deviation)
        solution = own.solve()
        fuser.own_encode.copy_(_encoder(solution, config.own_rank, self.settings.seed))
        fuser.own_mean.copy_(solution.mean)
        fuser.own_inverse.copy_(solution.scale)
        return fuser

    # -- training

    def _train(self, fuser: Fuser, inputs: Iterator[FuseInput]) -> tuple[int, dict[str, float]]:
        """Train until the time, the steps or the patience is spent; the best weights are put in place."""
        settings = self.settings
        held = self._held_out()
        alone = self._losses(None, held)
        best, best_score, best_gain = _copy(fuser), 0.0, dict[str, float]()
        encoders = fuser.encoders()
        others = [one for one in fuser.parameters() if all(one is not two for two in encoders)]
        optimizer = torch.optim.AdamW(
            [
                {"params": encoders, "lr": settings.rate},
                {"params": others, "lr": settings.residual_rate},
            ],
            betas=(0.9, 0.98),
            weight_decay=0.01,
        )
        total = torch.zeros((), device=self.receiver.device)
        steps, since, without = 0, 0, 0
        began = last = monotonic()
        while (part := self._part(began, steps)) < 1 and without < settings.patience:
            loss = self._loss(fuser, next(inputs), self.light[1])
            torch.autograd.backward(loss / settings.batch)
            total += loss.detach()
            steps, since = steps + 1, since + 1
            if steps % settings.batch == 0:
                rate = _schedule(steps / settings.batch, part)
                for group, top in zip(
                    optimizer.param_groups, (settings.rate, settings.residual_rate), strict=True
                ):
                    group["lr"] = rate * top
                torch.nn.utils.clip_grad_norm_(fuser.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if monotonic() - last > settings.every or self._part(began, steps) >= 1:
                losses = self._losses(fuser, held)
                gain = {name: 1 - losses[name] / alone[name] for name in alone}
                without += 1
                if fmean(gain.values()) > best_score:
                    best, best_score, best_gain = _copy(fuser), fmean(gain.values()), gain
                    without = 0
                self.report(FuseProgress("train", part, float(total) / since, gain))
                total.zero_()
                since, last = 0, monotonic()
        fuser.load_state_dict(best)
        return steps, best_gain

    def _part(self, began: float, steps: int) -> float:
        """How much of the training is done, by time or by steps."""
        by_time = (monotonic() - began) / (60 * self.settings.minutes)
        return max(by_time, steps / self.settings.steps if self.settings.steps else 0.0)

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
        inputs, tokens = self._read(lessons, self.models), self.tokens
        held = [next(inputs) for _ in range(self.settings.held_out)]
        self.tokens = tokens
        return held

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


def _bulk(inputs: Iterator[FuseInput], tokens: int) -> tuple[Tensor, Tensor]:
    """Rows of both models for `tokens` tokens or more, the attention sink left out."""
    theirs, own, count = [], [], 0
    while count < tokens:
        made = next(inputs)
        skip = max(SINK - made.case.at, 0)
        theirs.append(made.theirs[skip:])
        own.append(made.own[skip:])
        count += len(own[-1])
    return torch.cat(theirs), torch.cat(own)


def _encoder(solution: Solution, rank: int, seed: int) -> Tensor:
    """Directions of the closed form, (features, rank), each of unit variance."""
    encode, _ = solution.cut(rank, seed=seed)
    spread = (solution.factor.mT @ encode).square().sum(dim=0).sqrt()
    return encode / spread.clamp_min(1e-4)


def _schedule(update: float, part: float) -> float:
    """Ten updates of warm-up, then a cosine over what is done."""
    return min(1.0, (update + 1) / 10) * (0.5 + 0.5 * math.cos(math.pi * min(part, 1.0)))


def _copy(fuser: Fuser) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in fuser.state_dict().items()}
