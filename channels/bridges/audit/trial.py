"""Rows of an audit, made ready: a message as the receiver reads it, and as a bridge sees it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from unspoken.channels.bridges.audit.rows import require_two
from unspoken.channels.bridges.fit.example import (
    Example,
    answer_loss,
    divergence,
    example,
    head_of,
    none_losses,
    student,
)
from unspoken.channels.bridges.fit.samples import Sample, TokenizedSample, prepare
from unspoken.channels.bridges.projector import ProjectorConfig
from unspoken.channels.errors import InputError
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import TextModel

KEPT = 4
"""Trials held at once; their states are large."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """One row of an audit.

    Attributes:
        index: Its number.
        sample: The message in the receiver's tokens, with the sharer's state of it.
        full: The receiver's own state of the whole context.
        example: The bridge's features, and what the full text says.
        head: The receiver's own state of what stands before the message.
        none: Loss of the answer without the message.
    """

    index: int
    sample: TokenizedSample
    full: KVState
    example: Example
    head: KVState
    none: float

    @property
    def text(self) -> float:
        """Loss of the answer after the full text."""
        return float(self.example.teacher[0].loss)

    @property
    def asked(self) -> tuple[int, ...]:
        """The message's last token, which is always computed, and the ids up to the answer."""
        target = self.sample.targets[0]
        return (self.sample.ids[-1], *target.ids[: -target.count])

    def states(self, projected: KVState) -> list[KVState]:
        """What `asked` follows, where the message is projected."""
        start, stop = max(self.head.stop, self.sample.at), len(self.sample.ids) - 1
        return [self.head, projected.slice(start, stop)]

    @property
    def own(self) -> list[KVState]:
        """What `asked` follows, where the receiver has read the message itself."""
        return [self.full.slice(0, len(self.sample.ids) - 1)]


Condition = Callable[[Trial, Trial], KVState]
"""Makes the receiver's state of a message; the second trial is another example."""


class Trials:
    """The rows of one kind, each with one answer; a few are held at a time.

    Args:
        samples: The rows.
        config: Which features the bridge reads.
        sharer: Reads the messages.
        receiver: Answers.

    Raises:
        InputError: No two rows have different messages.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        config: ProjectorConfig,
        sharer: TextModel,
        receiver: TextModel,
    ) -> None:
        require_two(samples)
        self.samples, self.config = tuple(samples), config
        self.sharer, self.receiver = sharer, receiver
        self._at = lru_cache(KEPT)(self._make)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Trial:
        return self._at(index)

    def partner(self, index: int) -> Trial:
        """The nearest row before this one (for the first, after it) with another message."""
        mine = self.samples[index].text
        before = (n for n in range(index - 1, -1, -1) if self.samples[n].text != mine)
        after = (n for n in range(index + 1, len(self)) if self.samples[n].text != mine)
        nearest = next(before, None)
        return self[next(after) if nearest is None else nearest]

    @torch.no_grad()
    def _make(self, index: int) -> Trial:
        sample = prepare(self.samples[index], self.sharer, self.receiver)
        if not sample.targets or sample.tokens < 2:
            raise InputError(
                f"row {index + 1} has {'no answer' if sample.tokens >= 2 else 'no message'} in the "
                "receiver's tokens",
                expected="a message of some words, and an answer",
            )
        full = self.receiver.read(sample.ids)
        return Trial(
            index=index,
            sample=sample,
            full=full,
            example=example(self.config, sample, self.sharer, self.receiver, full),
            head=head_of(self.receiver, sample.ids, sample.at),
            none=float(none_losses(self.receiver, sample)[0]),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Assessment:
    """Losses of every row, under every condition.

    Attributes:
        none: Without the message, (rows,).
        text: After the full text, (rows,).
        loss: Per condition, (rows,).
        kl: Per condition, KL to the full text in nats, (rows,).
        top1: Per condition, share of the answer's tokens with the text's first choice, (rows,).
    """

    none: Tensor
    text: Tensor
    loss: Mapping[str, Tensor]
    kl: Mapping[str, Tensor]
    top1: Mapping[str, Tensor]


@torch.no_grad()
def assess(
    trials: Trials,
    conditions: Mapping[str, Condition],
    each: Callable[[Trial, Mapping[str, KVState]], None] = lambda trial, states: None,
) -> Assessment:
    """Let the receiver answer every row under every condition.

    Args:
        trials: The rows.
        conditions: By name.
        each: Called with each row and its states by condition, for what else is to be measured.
    """
    figures: dict[str, dict[str, list[float]]] = {
        what: {name: [] for name in conditions} for what in ("loss", "kl", "top1")
    }
    none, text = [], []
    for index in range(len(trials)):
        trial, other = trials[index], trials.partner(index)
        states = {name: make(trial, other) for name, make in conditions.items()}
        none.append(trial.none)
        text.append(trial.text)
        known, target = trial.example.teacher[0], trial.example.targets[0]
        for name, state in states.items():
            logs = student(trials.receiver, trial.example, state, trial.head)[0]
            same = logs.argmax(dim=-1) == known.tokens[:, 0]
            figures["loss"][name].append(float(answer_loss(logs, target)))
            figures["kl"][name].append(float(divergence(logs, known)))
            figures["top1"][name].append(float(same.float().mean()))
        each(trial, states)
    tensors = {
        what: {name: torch.tensor(values) for name, values in by_condition.items()}
        for what, by_condition in figures.items()
    }
    return Assessment(none=torch.tensor(none), text=torch.tensor(text), **tensors)
