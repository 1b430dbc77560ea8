"""How a projector's fit validates itself: retention on a few samples it does not learn from."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean

import torch
from torch import Tensor

from unspoken.channels.bridges.features import width
from unspoken.channels.bridges.fit.example import (
    Example,
    answer_loss,
    divergence,
    example,
    head_of,
    none_losses,
    student,
)
from unspoken.channels.bridges.fit.samples import Sample, prepare
from unspoken.channels.bridges.projection import projected_state
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import TextModel

KINDS = {
    "text": "text",
    "copy": "copy",
    "fact": "questions",
    "cloze": "questions",
    "recall": "recall",
}
MESSAGES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Retention per group of targets, with the message and with another, and the mean KL.

    Attributes:
        retention: Share of the full text's gain over no message.
        mismatched: The same with another message's sharer state.
        kl: Mean KL to the full text, nats.
        loss: Mean loss of all answers.
    """

    retention: dict[str, float]
    mismatched: dict[str, float]
    kl: float
    loss: float

    @property
    def score(self) -> float:
        """What the best weights are chosen by: specific retention, the mean of its groups."""
        if not self.retention:  # the full text gains nothing on any row
            return -self.kl
        return fmean(
            self.retention[name] - max(self.mismatched[name], 0.0) for name in self.retention
        )

    def to_dict(self) -> dict[str, float]:
        """Flat figures."""
        retained = {f"retention_{name}": value for name, value in self.retention.items()}
        lost = {f"mismatched_{name}": value for name, value in self.mismatched.items()}
        return {**retained, **lost, "kl": self.kl, "score": self.score}

    def describe(self) -> str:
        """What is kept by group, and the KL, in a few words."""
        parts = [
            f"{group} {retained:.2f} ({self.mismatched[group]:.2f} with another message)"
            for group, retained in self.retention.items()
        ]
        return ", ".join([*parts, f"KL {self.kl:.3f}"])


@dataclass(frozen=True, eq=False, kw_only=True)
class ValidationSet:
    """Examples that are not learnt from, with their losses without a message.

    Attributes:
        receiver: The receiver.
        examples: The examples.
        none: Per example and target, the loss without the message.
        sharer_columns: Columns of the features that come of the sharer.
    """

    receiver: TextModel
    examples: tuple[Example, ...]
    none: tuple[tuple[float, ...], ...]
    sharer_columns: int

    @classmethod
    def make(
        cls,
        config: ProjectorConfig,
        samples: Iterator[Sample],
        sharer: TextModel,
        receiver: TextModel,
        count: int = MESSAGES,
    ) -> "ValidationSet":
        """Prepare the first `count` samples."""
        examples, none = [], []
        for drawn in islice(samples, count):
            sample = prepare(drawn, sharer, receiver)
            full = receiver.read(sample.ids)
            examples.append(example(config, sample, sharer, receiver, full))
            none.append(tuple(float(loss) for loss in none_losses(receiver, sample)))
        columns = width(sharer.geometry, config.source_layers)
        return cls(
            receiver=receiver, examples=tuple(examples), none=tuple(none), sharer_columns=columns
        )

    @torch.no_grad()
    def score(self, projector: Projector) -> Scores:
        """Score a projector."""
        gain, retained, lost = (dict.fromkeys(sorted(set(KINDS.values())), 0.0) for _ in range(3))
        kls, losses = [], []
        for number, ex in enumerate(self.examples):
            other = swapped(ex, self.examples[number - 1], self.sharer_columns)
            head = head_of(self.receiver, ex.ids, ex.at)
            answers = zip(
                ex.targets,
                self.none[number],
                ex.teacher,
                self._say(projector, ex, head),
                self._say(projector, other, head),
                strict=True,
            )
            for target, none, teacher, logs, misled in answers:
                group, loss = KINDS[target.kind], float(answer_loss(logs, target))
                gain[group] += none - float(teacher.loss)
                retained[group] += none - loss
                if self.sharer_columns:  # else another message is the same, and all would be lost
                    lost[group] += none - float(answer_loss(misled, target))
                kls.append(float(divergence(logs, teacher)))
                losses.append(loss)
        alive = [group for group in gain if gain[group] > 0]
        return Scores(
            retention={group: retained[group] / gain[group] for group in alive},
            mismatched={group: lost[group] / gain[group] for group in alive},
            kl=fmean(kls),
            loss=fmean(losses),
        )

    def _say(self, projector: Projector, ex: Example, head: KVState) -> list[Tensor]:
        state = projected_state(projector, ex.features, ex.native, ex.at, self.receiver)
        return student(self.receiver, ex, state, head)


def swapped(ex: Example, other: Example, columns: int) -> Example:
    """An example with another's sharer columns, repeated or cut to its length."""
    rows = torch.arange(len(ex.features), device=ex.features.device) % len(other.features)
    features = torch.cat([other.features[rows, :columns], ex.features[:, columns:]], dim=1)
    return replace(ex, features=features)
