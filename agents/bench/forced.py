"""Forced tokens: how far a handed-over message is from a full recompute."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from unspoken.agents.bench.scene import Scene
from unspoken.agents.engines.assembly import assemble
from unspoken.agents.models.model import LocalModel
from unspoken.channels.base import Channel
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message
from unspoken.channels.metrics import distance

Row = TypeVar("Row")


class Score(NamedTuple):
    """How far two distributions are from each other.

    Attributes:
        kl: Mean KL(full || other) in nats.
        top1: Share of tokens with the same likeliest one.
    """

    kl: float
    top1: float


def score(full: Tensor, other: Tensor) -> Score:
    """The distance of log-probabilities, (tokens, vocabulary), from those of a full recompute."""
    kl, top1 = distance(full, other)
    return Score(float(kl), float(top1))


def means(scores: Iterable[Score]) -> dict[str, float]:
    """The figures of a row: means over its passages."""
    kl, top1 = zip(*scores, strict=True)
    return {"mean_kl": mean(kl), "top1": mean(top1)}


def rotated(rows: Sequence[Row]) -> list[Row]:
    """For each row the next one: whose message is sent in the control "another example's"."""
    return [*rows[1:], *rows[:1]]


@torch.no_grad()
def forced_logs(model: LocalModel, state: KVState, last: int, forced: Sequence[int]) -> Tensor:
    """Log-probabilities of each forced token's place, (forced, vocabulary).

    Args:
        model: The model.
        state: Its state of a context.
        last: The context's last token.
        forced: Ids that are forced after it.
    """
    before = state.slice(0, state.stop - 1)
    return model.logits(model.tensor((last, *forced[:-1])), [before]).float().log_softmax(dim=-1)


def recomputed(model: LocalModel, ids: Sequence[int], forced: Sequence[int]) -> Tensor:
    """The forced distributions over a context that the receiver computes itself."""
    return forced_logs(model, model.read(ids), ids[-1], forced)


@torch.no_grad()
def prefilled(
    model: LocalModel, ids: Sequence[int], states: Sequence[KVState], missing: Sequence[int]
) -> KVState:
    """The state of `ids` over states in place, the missing positions computed."""
    new = model.tensor([ids[position] for position in missing])
    return model.prefill(new, states, model.tensor(missing)).state


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A message in its receiver's context, and tokens forced after it.

    Attributes:
        model: The model of both ends.
        scene: The message and the context.
        forced: The ids that are forced.
        full: What a full recompute says of them, (forced, vocabulary).
    """

    model: LocalModel
    scene: Scene
    forced: tuple[int, ...]
    full: Tensor

    @classmethod
    def make(
        cls, model: LocalModel, words: tuple[int, ...], forced: tuple[int, ...], **scene: Any
    ) -> "Case":
        """The case of a message of `words`; `scene` as `Scene.make` takes it."""
        place = Scene.make(model, words, **scene)
        full = recomputed(model, place.ids, forced)
        return cls(model=model, scene=place, forced=forced, full=full)

    def carried(self, channel: Channel, sent: Message | None = None) -> Tensor:
        """The forced distributions where the message came by `channel`, as a turn assembles it.

        Args:
            channel: The channel.
            sent: What is sent in the message's place, of as many tokens.
        """
        inbound = self.scene.delivery(channel, sent)
        parts = assemble(self.model, self.scene.ids, [inbound], self.scene.history)
        return self.over(prefilled(self.model, self.scene.ids, parts.states, parts.missing))

    def over(self, state: KVState) -> Tensor:
        """The forced distributions over a state of the whole context."""
        return forced_logs(self.model, state, self.scene.ids[-1], self.forced)

    def text(self) -> Tensor:
        """The forced distributions where the receiver computes the message itself."""
        return recomputed(self.model, self.scene.ids, self.forced)

    def without(self) -> Tensor:
        """The forced distributions where no message came."""
        return recomputed(self.model, self.scene.empty_ids, self.forced)
