"""Rows of turns computed without an engine, and what plain transformers computes in their place."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from unspoken.agents.models.model import LocalModel
from unspoken.agents.models.ragged.segment import Rows, Segment
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.state import KVState

TOLERANCE = 2e-4
"""Largest difference of logits in float32; those of the models here have a spread of some units."""


def ids_of(seed: int, count: int, vocabulary: int = 300) -> list[int]:
    """Random token ids."""
    drawn = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocabulary, (count,), generator=drawn).tolist()


class Row:
    """A turn's rows, and the tokens that it has computed.

    Args:
        model: The model.
        ids: Its context.
        states: States of some of its positions.
        again: Positions that are computed though a state covers them.
        spare: Room for tokens after the context.
    """

    def __init__(
        self,
        model: LocalModel,
        ids: Sequence[int],
        states: Sequence[KVState] = (),
        again: Sequence[int] = (),
        spare: int = 16,
    ) -> None:
        covered = {at for state in states for at in range(state.start, state.stop)}
        self.model, self.ids, self.states = model, list(ids), tuple(states)
        self.missing = [at for at in range(len(ids)) if at not in covered or at in again]
        self.rows: Rows = model.begin(states, self.missing, spare=spare)
        self.prompt, self.done = len(ids), 0
        self.hidden: dict[int, list[Tensor]] = {}
        self.logits: list[Tensor] = []

    @property
    def decodes(self) -> bool:
        """Whether its context is computed."""
        return self.done == len(self.missing)

    @property
    def written(self) -> list[int]:
        """Its tokens after the context."""
        return self.ids[self.prompt :]

    def segment(self, most: int = 1000) -> Segment:
        """The next of its tokens: one of those it wrote, or some of its context."""
        if self.decodes:
            positions = [len(self.ids) - 1]
        else:
            positions = self.missing[self.done : self.done + most]
            self.done += len(positions)
        return Segment(
            rows=self.rows,
            ids=[self.ids[at] for at in positions],
            positions=positions,
            wanted=1 if self.decodes else 0,
            capture=self.hidden,
        )


def step(rows: Sequence[Row], most: int = 1000) -> None:
    """One round: a token for each row whose context is computed, some of it for the others."""
    segments = [row.segment(most) for row in rows]
    with torch.no_grad():
        logits = rows[0].model.compute(segments)
    for row, last in zip(rows, logits, strict=True):
        if last is not None:
            row.logits.append(last[-1])
            row.ids.append(int(last[-1].argmax()))


class _Given(DynamicCache):
    """Keys and values of some positions are those of states, whatever was computed there."""

    def __init__(self, states: Sequence[KVState], again: set[int]) -> None:
        super().__init__()
        self.states, self.again = states, again

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *rest: Any) -> Any:
        keys, values = super().update(key_states.clone(), value_states.clone(), layer_idx, *rest)
        for state in self.states:
            layer = state.layers[layer_idx]
            for row, at in enumerate(range(layer.first, layer.first + layer.rows)):
                if at not in self.again:
                    keys[0, :, at], values[0, :, at] = layer.keys[:, row], layer.values[:, row]
        return keys, values


@torch.no_grad()
def plain(
    model: LocalModel, ids: Sequence[int], states: Sequence[KVState] = (), again: Sequence[int] = ()
) -> tuple[Tensor, DynamicCache]:
    """Transformers' own forward over all of `ids`: logits (tokens, vocabulary), and its cache.

    Where states are given, the rows of their positions are theirs. So the logits and the rows of
    all other positions are those of a model that computed only them.
    """
    cache = _Given(states, set(again))
    tokens = torch.tensor([list(ids)])
    output: Any = model.hf(input_ids=tokens, past_key_values=cache, use_cache=True)
    return output.logits[0], cache


def apart(row: Row) -> float:
    """Largest difference between a row's logits and those of plain transformers, tokens given."""
    again = [at for at in row.missing if any(s.start <= at < s.stop for s in row.states)]
    logits, _ = plain(row.model, row.ids[:-1], row.states, again)
    return float((logits[row.prompt - 1 :] - torch.stack(row.logits)).abs().max())


def state_of(model: LocalModel, ids: Sequence[int], start: int = 0) -> KVState:
    """The state of `ids`, as plain transformers computes it; of those from `start` on."""
    _, cache = plain(model, ids)
    layers = tuple(
        LayerState(layer.keys[0, :, start:].clone(), layer.values[0, :, start:].clone(), start)
        for layer in cache.layers
    )
    return KVState(layers=layers, start=start, stop=len(ids), identity=model.identity)
