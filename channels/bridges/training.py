"""Fitting a bridge: choose source layers, solve the closed form, then train on what the full text makes likely."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from unspoken.channels.bridges.checkpoint import (
    Checkpoint,
    fingerprint,
    peak_memory_gb,
    schedule,
    weights_of,
)
from unspoken.channels.bridges.corpus import Corpus
from unspoken.channels.bridges.example import (
    SINK,
    Example,
    answer_loss,
    divergence,
    example,
    feature_rows,
    head_of,
    projected_state,
    sharer_rows,
    student,
    target_rows,
)
from unspoken.channels.bridges.features import width, widths
from unspoken.channels.bridges.heldout import HeldOut, Scores
from unspoken.channels.bridges.lessons import Case, prepare, teach
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.bridges.randomness import seeded
from unspoken.channels.bridges.reader import TextModel
from unspoken.channels.bridges.ridge import Gram, choose_layers, gram_bytes
from unspoken.channels.errors import BridgeError
from unspoken.channels.state import KVState

__all__ = ["FitProgress", "FitResult", "FitSettings", "fit"]


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a bridge is fitted.

    Attributes:
        minutes: Most minutes of training after the closed form; 0 leaves the closed form as it is.
        steps: Most training steps, one message each; None for as many as the minutes allow.
        source_layers: How many of the sharer's layers are read; None for some 3,000 columns of them, 4 to 12.
        native_layers: How many layers the receiver runs itself over the message.
        embeddings: How many of the receiver's token embeddings are features.
        rank, hidden, bottleneck: Widths of the projector; see `ProjectorConfig`.
        gram_tokens: Tokens that the closed form is solved from.
        columns: Most columns of features, which bounds the memory.
        pool: Messages kept to be learnt from again.
        fresh: Every how many steps a message is new.
        batch: Messages per update.
        rate: Learning rate of encode and decode.
        residual_rate: Learning rate of all else.
        likelihood: Weight of the cross-entropy beside the KL.
        patience: Held-out rounds without a gain until training stops.
        every: Seconds between held-out rounds.
        seed: Of all that is drawn.
    """

    minutes: float = 40.0
    steps: int | None = None
    source_layers: int | None = None
    native_layers: int = 0
    embeddings: int = 2
    rank: int = 512
    hidden: int = 2048
    bottleneck: int = 256
    gram_tokens: int = 32_000
    columns: int = 12_288
    pool: int = 320
    fresh: int = 3
    batch: int = 4
    rate: float = 1e-4
    residual_rate: float = 1e-3
    likelihood: float = 0.3
    patience: int = 6
    every: float = 360.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FitProgress:
    """Where a fit stands.

    Attributes:
        stage: ``layers``, ``gram``, ``solve``, ``train`` or ``done``.
        fraction: Done of the stage, 0 to 1.
        loss: Training loss since the last report, where there is one.
        scores: The last held-out scores.
    """

    stage: str
    fraction: float
    loss: float | None = None
    scores: Scores | None = None


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


Report = Callable[[FitProgress], None]


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
                    expected="rotary embeddings with fixed frequencies (default, linear, yarn, llama3)",
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
    report: Report = lambda progress: None,
    *,
    light: tuple[TextModel, TextModel] | None = None,
) -> FitResult:
    """Fit a projector for a pair of models.

    Args:
        sharer: Whose cache is read.
        receiver: Whose cache is made; its weights stay as they are.
        corpus: Plain text.
        settings: How.
        work: A folder for what a killed fit goes on from; None keeps nothing.
        report: Called now and then.
        light: The same two models in a cheaper dtype, to train and to judge on; the closed form uses the models
            themselves.

    Raises:
        BridgeError: The models cannot be bridged, or the features are more than `settings.columns`.
    """
    check_pair(sharer, receiver)
    with seeded(settings.seed, receiver.device):
        return _Fit(sharer, receiver, corpus, settings, work, report, light).run()


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
        report: Report,
        light: tuple[TextModel, TextModel] | None,
    ) -> None:
        self.light = light or (sharer, receiver)
        self.sharer, self.receiver, self.corpus = sharer, receiver, corpus
        self.settings, self.report = settings, report
        dtypes = [model.dtype for model in (sharer, receiver, *self.light)]
        made_of = fingerprint(settings, corpus.digest, dtypes)
        self.checkpoint = Checkpoint.of(work, "fit", made_of)
        self.rng = random.Random(settings.seed)
        self._heads: dict[tuple[int, ...], KVState] = {}

    def run(self) -> FitResult:
        began = monotonic()
        saved = self._load()
        if saved is None:
            projector, closed = self._closed_form()
            closed_seconds, closed_peak = monotonic() - began, peak_memory_gb()
            held = self._held_out(projector.config)
            scores = held.score(projector)
            if not math.isfinite(scores.score):
                raise BridgeError(
                    f"the held-out score is {scores.score}: the models' logits are not finite in {self.light[1].dtype}",
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
            projector = self._projector(ProjectorConfig.from_dict(saved.config))
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

    # -- closed form

    def _projector(self, config: ProjectorConfig) -> Projector:
        made = Projector(config, self.sharer.geometry, self.receiver.geometry)
        return made.to(self.receiver.device)

    def _lessons(self, seed: int) -> Iterator[Case]:
        for lesson in teach(self.corpus.stream(seed), seed):
            yield prepare(lesson, self.sharer, self.receiver)

    def _choose(self, cases: list[Case]) -> tuple[int, ...]:
        """Source layers, by what they add on the first few messages."""
        count = len(self.sharer.geometry.layers)
        sizes = widths(self.sharer.geometry, range(count))
        device = self.receiver.device
        rows = [sharer_rows(case, self.sharer, range(count)).to(device) for case in cases]
        wanted, embeddings = _within_columns(self.settings, sizes, self.receiver)
        plain = ProjectorConfig((), embeddings=embeddings)
        known = torch.cat(
            [
                feature_rows(plain, every[:, :0], case.ids, case.at, self.receiver, None)
                for every, case in zip(rows, cases, strict=True)
            ]
        )
        layers = range(len(self.receiver.geometry.layers))
        targets = [
            target_rows(self.receiver.read(case.ids), case, self.receiver, layers) for case in cases
        ]
        blocks = list(torch.split(torch.cat(rows), list(sizes), dim=1))
        chosen = choose_layers(blocks, known, torch.cat(targets), wanted, seed=self.settings.seed)
        return tuple(sorted(chosen))

    def _closed_form(self) -> tuple[Projector, int]:
        settings, receiver = self.settings, self.receiver
        cases = self._lessons(settings.seed)
        first = [next(cases) for _ in range(10)]
        self.report(FitProgress("layers", 0.0))
        sizes = widths(self.sharer.geometry, range(len(self.sharer.geometry.layers)))
        config = ProjectorConfig(
            self._choose(first),
            settings.native_layers,
            _within_columns(settings, sizes, receiver)[1],
            settings.rank,
            settings.hidden,
            settings.bottleneck,
        )
        inputs = sum(config.features(self.sharer.geometry, receiver.geometry))
        outputs = width(receiver.geometry, config.target_layers(receiver.geometry))
        if inputs > settings.columns:
            raise BridgeError(
                f"{len(config.source_layers)} source layers give {inputs} columns of features, and their Gram "
                f"matrices {gram_bytes(inputs, outputs) / 2**30:.1f} GiB",
                expected=f"at most {settings.columns} columns",
                fix="read fewer source layers (--source-layers)",
            )
        gram = Gram(inputs, outputs, receiver.device)
        while gram.count < settings.gram_tokens:
            case = first.pop() if first else next(cases)
            made = example(
                config, case, self.sharer, receiver, full := receiver.read(case.ids), teach=False
            )
            skip = max(SINK - case.at, 0)
            targets = target_rows(full, case, receiver, config.target_layers(receiver.geometry))
            gram.add(made.features[skip:], targets[skip:])
            self.report(FitProgress("gram", min(gram.count / settings.gram_tokens, 1.0)))
        self.report(FitProgress("solve", 0.0))
        solution = gram.solve()
        tokens = gram.count
        gram.release()
        projector = self._projector(config)
        encode, decode = solution.cut(config.rank, seed=settings.seed)
        projector.start_from(solution, encode, decode)
        return projector, tokens

    # -- training

    def _held_out(self, config: ProjectorConfig) -> HeldOut:
        # A corpus of one document holds nothing out: its scores then say less, and the audit's own rows judge.
        stream = replace(self.corpus, train=self.corpus.held_out or self.corpus.train).stream(0)
        lessons = teach(stream, seed=10_007)
        return HeldOut.make(config, lessons, *self.light)

    def _examples(self, config: ProjectorConfig, seed: int) -> Iterator[Example]:
        sharer, receiver = self.light
        for lesson in teach(self.corpus.stream(seed), seed):
            case = prepare(lesson, sharer, receiver)
            yield example(config, case, sharer, receiver, receiver.read(case.ids))

    def _train(self, projector: Projector, saved: _Progressed, held: HeldOut) -> None:
        settings = self.settings
        optimizer = torch.optim.AdamW(
            [
                {"params": [projector.encode, projector.decode], "lr": settings.rate},
                {"params": list(projector.residual_parameters()), "lr": settings.residual_rate},
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
        receiver = self.light[1]
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
            return head_of(self.light[1], made.ids, made.at)
        before = made.ids[: made.at]
        if before not in self._heads:
            self._heads[before] = head_of(self.light[1], made.ids, made.at)
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


def _within_columns(
    settings: FitSettings, sizes: Sequence[int], receiver: TextModel
) -> tuple[int, int]:
    """How many source layers and embeddings are read, so that the features of wide models stay within the columns."""
    if settings.source_layers is not None:
        return min(settings.source_layers, len(sizes)), settings.embeddings
    size, width_of_one = max(sizes), receiver.geometry.hidden_size
    native = width_of_one if settings.native_layers else 0
    embeddings = settings.embeddings
    while embeddings > 1 and settings.columns - native - embeddings * width_of_one < 2 * size:
        embeddings -= 1
    room = (settings.columns - native - embeddings * width_of_one) // size
    return min(_layers_to_read(size), max(room, 1), len(sizes)), embeddings


def _layers_to_read(columns: int) -> int:
    """Source layers worth their products: half or a third of them lost nothing where that was measured."""
    return max(4, min(12, 3072 // columns))
