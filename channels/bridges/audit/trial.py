"""Rows of an audit, made ready: the receiver's own view of a message, and the message as a bridge
sees it.
"""

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

__all__ = ["Judged", "Trial", "Trials", "Way", "judge"]

KEPT = 4
"""Trials held at once; their states are large."""


@dataclass(frozen=True, eq=False)
class Trial:
    """One row of an audit.

    Attributes:
        index: Its number.
        case: The message in the receiver's tokens, with the sharer's state of it.
        full: The receiver's own state of the whole context.
        made: The bridge's features, and what the full text says.
        head: The receiver's own state of what stands before the message.
        none: Loss of the answer without the message.
    """

    index: int
    case: TokenizedSample
    full: KVState
    made: Example
    head: KVState
    none: float

    @property
    def text(self) -> float:
        """Loss of the answer after the full text."""
        return float(self.made.taught[0].loss)

    @property
    def asked(self) -> tuple[int, ...]:
        """The message's last token, which every way computes itself, and the ids between message
        and answer.
        """
        ids, count = self.case.tails[0]
        return (self.case.ids[-1], *ids[: len(ids) - count])

    def states(self, made: KVState) -> list[KVState]:
        """What `asked` follows, where the message is projected."""
        return [self.head, made.slice(max(self.head.stop, self.case.at), len(self.case.ids) - 1)]

    @property
    def own(self) -> list[KVState]:
        """What `asked` follows, where the receiver has read the message itself."""
        return [self.full.slice(0, len(self.case.ids) - 1)]


Way = Callable[[Trial, Trial], KVState]
"""A way to make the receiver's state of a message; the second trial is another example."""


class Trials:
    """The rows of one kind, each with one answer; a few are held at a time.

    Args:
        lessons: The rows.
        config: Which features the bridge reads.
        sharer: Reads the messages.
        receiver: Answers.

    Raises:
        InputError: No two rows have different messages.
    """

    def __init__(
        self,
        lessons: Sequence[Sample],
        config: ProjectorConfig,
        sharer: TextModel,
        receiver: TextModel,
    ) -> None:
        require_two(lessons)
        self.lessons, self.config = tuple(lessons), config
        self.sharer, self.receiver = sharer, receiver
        self._at = lru_cache(KEPT)(self._make)

    def __len__(self) -> int:
        return len(self.lessons)

    def __getitem__(self, index: int) -> Trial:
        return self._at(index)

    def partner(self, index: int) -> Trial:
        """Another example: the nearest row before this one (after it, for the first) with another
        message.
        """
        mine = self.lessons[index].text
        before = (n for n in range(index - 1, -1, -1) if self.lessons[n].text != mine)
        after = (n for n in range(index + 1, len(self)) if self.lessons[n].text != mine)
        found = next(before, None)
        return self[next(after) if found is None else found]

    @torch.no_grad()
    def _make(self, index: int) -> Trial:
        case = prepare(self.lessons[index], self.sharer, self.receiver)
        if not case.tails or case.tokens < 2:
            raise InputError(
                f"row {index + 1} has {'no answer' if case.tokens >= 2 else 'no message'} in the "
                "receiver's tokens",
                expected="a message of some words, and an answer",
            )
        full = self.receiver.read(case.ids)
        return Trial(
            index,
            case,
            full,
            example(self.config, case, self.sharer, self.receiver, full),
            head_of(self.receiver, case.ids, case.at),
            float(none_losses(self.receiver, case)[0]),
        )


@dataclass(frozen=True, eq=False)
class Judged:
    """Losses of every row, by every way.

    Attributes:
        none: Without the message, (rows,).
        text: After the full text, (rows,).
        loss: Per way, (rows,).
        kl: Per way, KL to the full text in nats, (rows,).
        top1: Per way, share of the answer's tokens with the full text's first choice, (rows,).
    """

    none: Tensor
    text: Tensor
    loss: Mapping[str, Tensor]
    kl: Mapping[str, Tensor]
    top1: Mapping[str, Tensor]


@torch.no_grad()
def judge(
    trials: Trials,
    ways: Mapping[str, Way],
    each: Callable[[Trial, Mapping[str, KVState]], None] = lambda trial, made: None,
) -> Judged:
    """Let the receiver answer every row by every way.

    Args:
        trials: The rows.
        ways: The ways by name.
        each: Called with each row and its states by way, for what else is to be measured.
    """
    figures: dict[str, dict[str, list[float]]] = {
        what: {name: [] for name in ways} for what in ("loss", "kl", "top1")
    }
    none, text = [], []
    for index in range(len(trials)):
        trial, other = trials[index], trials.partner(index)
        made = {name: way(trial, other) for name, way in ways.items()}
        none.append(trial.none)
        text.append(trial.text)
        known, (tail, count) = trial.made.taught[0], trial.made.tails[0]
        for name, state in made.items():
            logs = student(trials.receiver, trial.made, state, trial.head)[0]
            figures["loss"][name].append(float(answer_loss(logs, tail, count)))
            figures["kl"][name].append(float(divergence(logs, known)))
            same = logs.argmax(dim=-1) == known.tokens[:, 0]
            figures["top1"][name].append(float(same.float().mean()))
        each(trial, made)
    tensors = {
        what: {name: torch.tensor(found) for name, found in by_way.items()}
        for what, by_way in figures.items()
    }
    return Judged(
        torch.tensor(none), torch.tensor(text), tensors["loss"], tensors["kl"], tensors["top1"]
    )
