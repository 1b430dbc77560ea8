"""The training loop that the fits of projectors and of fusers share.

Both modules begin at a closed form, so training has to find only what no linear map can say. The
two models are frozen. The gradient of the receiver's loss on an answer flows through its layers
into the keys and values that the module made, and from there into the module. A message is a step,
some messages are an update. The weights of the closed form move slowly. The residual begins at
nothing and moves fast.

Now and then, always between two updates, a round on validation rows scores the module. The best
weights met are the result, the closed form among them, so that training never makes it worse. Each
round also writes all that the fit goes on from after a kill. Training ends with its minutes, its
steps, or its patience.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from unspoken.channels.bridges.fit.checkpoint import Checkpoint, fingerprint, seeded
from unspoken.channels.bridges.fit.progress import FitProgress, FitReport, Validation
from unspoken.channels.bridges.fit.settings import TrainSettings
from unspoken.channels.bridges.manifest import Figures
from unspoken.channels.data.text import Corpus
from unspoken.channels.errors import BridgeError
from unspoken.channels.model import TextModel

Module = TypeVar("Module", bound=nn.Module)
Given = TypeVar("Given")
Settings = TypeVar("Settings", bound=TrainSettings)

Models = tuple[TextModel, TextModel]
"""The sharer and the receiver."""


@dataclass(frozen=True, eq=False)
class Fitted(Generic[Module]):
    """A fitted module.

    Attributes:
        module: With the best weights met.
        figures: Minutes, steps and validation scores, as a manifest's ``fit`` holds them.
        tokens: Receiver tokens seen.
    """

    module: Module
    figures: Figures
    tokens: int


@dataclass(eq=False, kw_only=True)
class Progressed:
    """What a killed fit goes on from.

    Attributes:
        config: Of the module, as plain data.
        weights, best: Its weights now, and the best met.
        best_score: Score of the best.
        closed_scores, best_scores: Figures of the closed form, and of the best.
        optimizer: The optimizer's state.
        step, tokens: Steps taken, and receiver tokens seen.
        drawn: Samples drawn.
        rounds_without: Validation rounds without a gain.
        seconds, closed_seconds: Of training, and of the closed form.
        closed_peak_gb: Most memory held until the closed form was solved.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    best_score: float
    closed_scores: dict[str, float] = field(default_factory=dict)
    best_scores: dict[str, float] = field(default_factory=dict)
    optimizer: dict[str, Any] | None = None
    step: int = 0
    tokens: int = 0
    drawn: int = 0
    rounds_without: int = 0
    seconds: float = 0.0
    closed_seconds: float = 0.0
    closed_peak_gb: float | None = None

    def minutes(self) -> tuple[float, float]:
        """Minutes of the closed form, and of all."""
        total = self.closed_seconds + self.seconds
        return round(self.closed_seconds / 60, 2), round(total / 60, 2)


def check_pair(sharer: TextModel, receiver: TextModel) -> None:
    """Refuse models with other rows than keys and values, or whose keys cannot be made bare.

    Raises:
        BridgeError: naming the model.
    """
    for name, model in (("sharer", sharer), ("receiver", receiver)):
        if not model.geometry.plain:
            raise BridgeError(
                f"a bridge maps rows of keys and values, and of the {name}'s layers "
                f"{model.geometry.described()}",
                expected="two models whose layers all have keys and values",
                fix="use a text channel for this pair",
            )
        for rope in model.geometry.ropes:
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


class Fit(ABC, Generic[Module, Given, Settings]):
    """A fit from the closed form to the best weights; what is fitted, and on what, its kinds say.

    Args:
        sharer: Whose cache is read.
        receiver: Whose cache is made or enriched; its weights stay as they are.
        corpus: Plain text.
        settings: How.
        report: Called now and then.
        work: A folder for what a killed fit goes on from; None keeps nothing.
        train_models: The same two models in a cheaper dtype, to take the training steps on; the
            closed form uses the models themselves.

    Raises:
        BridgeError: Keys of one of the models cannot be made bare.
    """

    kind: ClassVar[str]
    """What the names of its checkpoints begin with."""
    solved: ClassVar[tuple[str, str]]
    """Names of the parameters that the closed form gave."""
    weight_decay: ClassVar[float]

    def __init__(
        self,
        sharer: TextModel,
        receiver: TextModel,
        corpus: Corpus,
        settings: Settings,
        *,
        report: FitReport = lambda progress: None,
        work: Path | None = None,
        train_models: Models | None = None,
    ) -> None:
        check_pair(sharer, receiver)
        self.models = sharer, receiver
        self.train_models = train_models or self.models
        self.receiver, self.corpus = receiver, corpus
        self.settings, self.report = settings, report
        dtypes = [model.dtype for model in (*self.models, *self.train_models)]
        made_of = fingerprint(settings, corpus.digest, dtypes)
        self.checkpoint = Checkpoint.of(work, self.kind, made_of)

    @abstractmethod
    def start(self) -> tuple[Module, Progressed, Validation | None]:
        """The closed form, and what a validation round says of it where there was one."""

    @abstractmethod
    def build(self, config: dict[str, Any]) -> Module:
        """A module of a configuration, whose weights a checkpoint has."""

    @abstractmethod
    def draw(self, progressed: Progressed) -> Iterator[Given]:
        """What to learn from, without end; counts the tokens and the samples drawn."""

    @abstractmethod
    def loss(self, module: Module, given: Given) -> Tensor:
        """The loss of a step."""

    @abstractmethod
    def validator(self) -> Callable[[Module], Validation]:
        """Make the validation rows ready; gives what validates a module on them."""

    @abstractmethod
    def figures(self, progressed: Progressed) -> Figures:
        """What the manifest says of the fit."""

    def run(self) -> Fitted[Module]:
        """Fit, from the beginning or from where a killed fit was.

        Raises:
            BridgeError: The models cannot be bridged.
        """
        with seeded(self.settings.seed, self.receiver.device):
            progressed = self._load()
            if progressed is None:
                module, progressed, validation = self.start()
                self.checkpoint.save(vars(progressed))
                if validation is not None:
                    self.report(FitProgress(stage="train", fraction=0.0, scores=validation))
            else:
                module = self.build(progressed.config)
                module.load_state_dict(progressed.weights)
            if self.settings.minutes > 0 and self.settings.steps != 0:
                self._train(module, progressed)
        module.load_state_dict(progressed.best)
        module.eval().requires_grad_(False)
        self.report(FitProgress(stage="done", fraction=1.0))
        return Fitted(module, self.figures(progressed), progressed.tokens)

    def _load(self) -> Progressed | None:
        state = self.checkpoint.load(self.receiver.device)
        with suppress(TypeError):  # of another version
            return None if state is None else Progressed(**state)
        return None

    def _train(self, module: Module, progressed: Progressed) -> None:
        """Train until the time, the steps or the patience is spent."""
        settings, validate = self.settings, self.validator()
        given = self.draw(progressed)
        optimizer = self._optimizer(module)
        if progressed.optimizer is not None:
            optimizer.load_state_dict(progressed.optimizer)
        total, since = torch.zeros((), device=self.receiver.device), 0
        before, began = progressed.seconds, monotonic()
        last = began
        while (done := self._done(progressed)) < 1 and (
            progressed.rounds_without < settings.patience
        ):
            loss = self.loss(module, next(given))
            torch.autograd.backward(loss / settings.batch)
            total += loss.detach()
            progressed.step, since = progressed.step + 1, since + 1
            whole = progressed.step % settings.batch == 0
            if whole:
                self._update(module, optimizer, progressed.step / settings.batch, done)
            progressed.seconds = before + monotonic() - began
            if (whole and monotonic() - last > settings.every) or self._done(progressed) >= 1:
                validation = validate(module)
                _note(module, progressed, validation)
                progressed.optimizer = optimizer.state_dict()
                progressed.seconds = before + monotonic() - began
                self.checkpoint.save(vars(progressed))
                self.report(
                    FitProgress(
                        stage="train", fraction=done, loss=float(total) / since, scores=validation
                    )
                )
                total.zero_()
                since, last = 0, monotonic()

    def _optimizer(self, module: Module) -> torch.optim.Optimizer:
        named = dict(module.named_parameters())
        solved = [named.pop(name) for name in self.solved]
        groups = [{"params": solved}, {"params": list(named.values())}]
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=self.weight_decay)

    def _update(
        self, module: Module, optimizer: torch.optim.Optimizer, update: float, done: float
    ) -> None:
        rates = (self.settings.rate, self.settings.residual_rate)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule(update, done)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _done(self, progressed: Progressed) -> float:
        """How much of the training is done, by time or by steps."""
        by_time = progressed.seconds / (60 * self.settings.minutes)
        by_steps = progressed.step / self.settings.steps if self.settings.steps else 0.0
        return max(by_time, by_steps)


def _note(module: nn.Module, progressed: Progressed, validation: Validation) -> None:
    """Keep a round's weights, as the best where they are."""
    progressed.weights = weights_of(module)
    progressed.rounds_without += 1
    if validation.score > progressed.best_score:
        progressed.best, progressed.best_score = progressed.weights, validation.score
        progressed.best_scores = dict(validation.to_dict())
        progressed.rounds_without = 0


def schedule(update: float, done: float) -> float:
    """Ten updates of warm-up, then a cosine over what is done."""
    return min(1.0, (update + 1) / 10) * (0.5 + 0.5 * math.cos(math.pi * min(done, 1.0)))


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's weights, which its training leaves alone."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
