"""What a bridge is worth in a receiver's turn, as a workflow composes it.

The receiver has a system prompt, the message as a user's turn, and the question as the next one.
Each question is answered after the full text (T), after another row's text (T′), after the bridge
(B), after the bridge with that other row's whole message (P), and after a bridge of equal size and
training that gets the receiver's embeddings alone (E*). A wrong message is wrong as a whole: both
the sharer's cache and the words are the other row's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean

import torch
from torch import Tensor

from unspoken.channels.bridges.align import aligned
from unspoken.channels.bridges.audit.answers import greedy, losses_of
from unspoken.channels.bridges.audit.contexts import TaskContext, stranger
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.projection import SINK, feature_rows, native_part, projected_state
from unspoken.channels.bridges.projector import Projector
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message
from unspoken.channels.metrics import f1
from unspoken.channels.model import Report, TextModel

SYSTEM = "You get a text and a question about it. Answer the question by the text."
TEXT, OTHER, BRIDGE = "text", "another row's text", "bridge"
WRONG, ALONE = "bridge, another row's message", "embeddings alone"
SCORED = (TEXT, OTHER, BRIDGE)
"""Conditions whose answers are also generated and scored."""


def asked(question: str) -> str:
    """How a question is put to the receiver."""
    return f"Question: {question}\nAnswer in a few words."


@dataclass(frozen=True, eq=False, kw_only=True)
class _Placed:
    """A message that both models have read, in the receiver's context.

    Attributes:
        message: The message, without the sharer's state.
        stop: Position after its last mapped token.
        text, bridged, alone: What the rest of the context follows: the receiver's own state, the
            bridge's, and that of the embeddings alone.
    """

    message: Message
    stop: int
    text: tuple[KVState, ...]
    bridged: tuple[KVState, ...]
    alone: tuple[KVState, ...] | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Measured:
    """Losses and scores of every context, each the mean over its questions.

    Attributes:
        size: Tokens of a message that were asked for.
        questions: How many were asked.
        tokens: Tokens of a message, the mean.
        loss: Per condition, nats a token of the right answer, (contexts,).
        score: Per scored condition, F1 of the generated answer, (contexts,).
    """

    size: int
    questions: int
    tokens: float
    loss: Mapping[str, Tensor]
    score: Mapping[str, Tensor]


@dataclass(eq=False, kw_only=True)
class Task:
    """A bridge, its two models, and the bridge of embeddings alone where there is one.

    Attributes:
        bridge: The bridge.
        sharer, receiver: Its models.
        alone: The projector that gets the receiver's embeddings alone; None where there is none.
        written: Most tokens of a generated answer.
    """

    bridge: Bridge
    sharer: TextModel
    receiver: TextModel
    alone: Projector | None
    written: int

    @torch.no_grad()
    def measure(self, contexts: Sequence[TaskContext], size: int, report: Report) -> Measured:
        """Answer every question under every condition.

        Args:
            contexts: The contexts, two at least, of which each has another that differs.
            size: Tokens of their messages.
            report: Told of how much is done.
        """
        read = lru_cache(4)(lambda index: self._read(contexts[index]))
        loss: dict[str, list[float]] = {}
        score: dict[str, list[float]] = {}
        for index, context in enumerate(contexts):
            another = stranger(contexts, index)
            if another is None:  # no other text can stand in its place
                continue
            mine, other = read(index), read(another)
            losses: dict[str, list[float]] = {}
            scores: dict[str, list[float]] = {}
            for row in context.questions:
                answer = self.receiver.words(row.answers[0])[0][:64]
                for name, (ids, states) in self._conditions(mine, other, row.question).items():
                    (found,) = losses_of(self.receiver, states, ids, [answer])
                    losses.setdefault(name, []).append(found)
                    if name in SCORED:
                        said = greedy(self.receiver, states, ids, self.written)
                        scores.setdefault(name, []).append(f1(said, row.answers))
            for every, these in ((loss, losses), (score, scores)):
                for name, values in these.items():
                    every.setdefault(name, []).append(fmean(values))
            report(f"task at {size} tokens", (index + 1) / len(contexts))
        return Measured(
            size=size,
            questions=sum(len(context.questions) for context in contexts),
            tokens=fmean(len(self.receiver.words(one.message)[0]) for one in contexts),
            loss={name: torch.tensor(values) for name, values in loss.items()},
            score={name: torch.tensor(values) for name, values in score.items()},
        )

    def _conditions(
        self, mine: _Placed, other: _Placed, question: str
    ) -> dict[str, tuple[tuple[int, ...], tuple[KVState, ...]]]:
        """Per condition, the ids after the message up to the answer, and what they follow."""
        rest, others = self._rest(mine, question), self._rest(other, question)
        named = {
            TEXT: (rest, mine.text),
            OTHER: (others, other.text),
            BRIDGE: (rest, mine.bridged),
            WRONG: (others, other.bridged),
        }
        return named if mine.alone is None else named | {ALONE: (rest, mine.alone)}

    def _rest(self, placed: _Placed, question: str) -> tuple[int, ...]:
        """What the receiver computes after a message, and is asked with."""
        arrival = self.receiver.arrival(placed.message, asked(question), SYSTEM)
        return arrival.context[placed.stop :]

    def _read(self, context: TaskContext) -> _Placed:
        """A message read by both models, and mapped."""
        receiver, message = self.receiver, self.sharer.message(context.message)
        arrival = receiver.arrival(message, asked("?"), SYSTEM)
        (run,) = aligned(arrival)  # one turn without borders inside: the words are one run
        ids, state = arrival.context[: run.stop], message.require_state()
        own = receiver.read(ids)
        mapped = self.bridge.project(state, run.rows, ids, run.at, receiver)
        head, first = own.slice(0, run.at + SINK), run.at + SINK
        alone = None
        if self.alone is not None:
            alone = (head, self._map_alone(self.alone, ids, run.at).slice(first, run.stop))
        return _Placed(
            message=replace(message, state=None),
            stop=run.stop,
            text=(own,),
            bridged=(head, mapped.slice(first, run.stop)),
            alone=alone,
        )

    def _map_alone(self, projector: Projector, ids: tuple[int, ...], at: int) -> KVState:
        """The receiver's state of a message, as its embeddings alone make it."""
        receiver, config = self.receiver, projector.config
        nothing = torch.zeros(len(ids) - at, 0, device=receiver.device)
        hidden, native = native_part(receiver, config.native_layers, ids, at)
        features = feature_rows(config, nothing, ids, at, receiver, hidden)
        return projected_state(projector, features, native, at, receiver)
