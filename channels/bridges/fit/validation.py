"""How a fit judges itself while it runs: retention on a few held-out lessons, by kind."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
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

__all__ = ["Scores", "ValidationSet"]

KINDS = {
    "text": "text",
    "copy": "copy",
    "fact": "questions",
    "cloze": "questions",
    "recall": "recall",
}
MESSAGES = 16


@dataclass(frozen=True, slots=True)
class Scores:
    """Retention per group of tails, of the bridge and with another message's state, and the mean
    KL.

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
        kept = {f"retention_{name}": value for name, value in self.retention.items()}
        lost = {f"mismatched_{name}": value for name, value in self.mismatched.items()}
        return {**kept, **lost, "kl": self.kl, "score": self.score}


@dataclass(frozen=True, eq=False)
class ValidationSet:
    """Held-out examples with their losses without a message.

    Attributes:
        receiver: The receiver.
        examples: The examples.
        none: Per example and tail, the loss without the message.
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
        lessons: Iterator[Sample],
        sharer: TextModel,
        receiver: TextModel,
        count: int = MESSAGES,
    ) -> "ValidationSet":
        """Prepare the first `count` lessons."""
        made: list[Example] = []
        none = []
        while len(made) < count:
            case = prepare(next(lessons), sharer, receiver)
            full = receiver.read(case.ids)
            made.append(example(config, case, sharer, receiver, full))
            none.append(tuple(float(loss) for loss in none_losses(receiver, case)))
        columns = width(sharer.geometry, config.source_layers)
        return cls(receiver, tuple(made), tuple(none), columns)

    @torch.no_grad()
    def score(self, projector: Projector) -> Scores:
        """Judge a projector."""
        gain: dict[str, float] = {}
        kept: dict[str, float] = {}
        lost: dict[str, float] = {}
        kls, losses = [], []
        for number, made in enumerate(self.examples):
            other = swapped(made, self.examples[number - 1], self.sharer_columns)
            head = head_of(self.receiver, made.ids, made.at)
            said = self._say(projector, made, head)
            misled = self._say(projector, other, head)
            for index, (tail, count) in enumerate(made.tails):
                group = KINDS[made.kinds[index]]
                none, text = self.none[number][index], float(made.taught[index].loss)
                mine = float(answer_loss(said[index], tail, count))
                gain[group] = gain.get(group, 0.0) + none - text
                kept[group] = kept.get(group, 0.0) + none - mine
                lost[group] = (
                    lost.get(group, 0.0) + none - float(answer_loss(misled[index], tail, count))
                )
                kls.append(float(divergence(said[index], made.taught[index])))
                losses.append(mine)
        alive = [group for group in sorted(gain) if gain[group] > 0]
        return Scores(
            {group: kept[group] / gain[group] for group in alive},
            {group: lost[group] / gain[group] for group in alive},
            fmean(kls),
            fmean(losses),
        )

    def _say(self, projector: Projector, made: Example, head: KVState) -> list[Tensor]:
        state = projected_state(projector, made.features, made.native, made.at, self.receiver)
        return student(self.receiver, made, state, head)


def swapped(made: Example, other: Example, columns: int) -> Example:
    """An example whose sharer's columns are another example's, its own repeated or cut to length."""
    rows = torch.arange(len(made.features), device=made.features.device) % len(other.features)
    features = torch.cat([other.features[rows, :columns], made.features[:, columns:]], dim=1)
    return replace(made, features=features)
