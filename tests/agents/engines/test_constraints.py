"""What a turn may write, beside the settings of its sampler and beside other turns."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from architectures import make
from engine_turns import PROMPT, writes
from torch import Tensor

from unspoken.agents.engines.base import Sampling, TurnRequest
from unspoken.agents.engines.sampling import Sampler, sample
from unspoken.agents.engines.turn import drive_turn

FORCED = {2: (60, 61), 7: (60,)}
"""After how many tokens some must follow."""


class Forcing:
    """Lets every token come but where some must; keeps `Constraint`."""

    over = cut = guessable = False

    def __init__(self, words: int, room: int) -> None:
        self.words, self.count, self.room = words, 0, room

    def fill(self, masks: Tensor, drafts: Sequence[int]) -> None:
        masks[:] = -1

    def push(self, token: int) -> tuple[int, ...]:
        """Take one; what is written in its place at the end are two others."""
        self.count += 1
        if self.count != 10:
            return (token,)
        self.count += 1
        return (62, 63)

    def forced(self) -> tuple[int, ...]:
        return FORCED.get(self.count, ())


class Refusing(Forcing):
    """One whose matcher has a fault."""

    def fill(self, masks: Tensor, drafts: Sequence[int]) -> None:
        raise RuntimeError("a fault of the matcher")


class Forces:
    """A grammar of such constraints."""

    def __init__(self, vocabulary: int) -> None:
        self.words = -(-vocabulary // 32)

    def begin(self, room: int) -> Forcing:
        return Forcing(self.words, room)


@pytest.mark.parametrize("settings", [{"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 2}])
def test_penalties_look_at_tokens_that_were_forced(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And at those that stand in place of a sampled one, each in its place."""
    seen: list[list[int]] = []
    choose = Sampler.__call__

    def noted(sampler: Sampler, logits: Tensor) -> Tensor:
        seen.append(sampler._ids[0].tolist())
        return choose(sampler, logits)

    monkeypatch.setattr(Sampler, "__call__", noted)
    model = make("llama")
    request = TurnRequest(
        ids=PROMPT, sampling=writes(16, **settings), grammar=Forces(model.vocabulary)
    )
    _, computed = drive_turn(model, request)
    for ids in seen:
        assert tuple(ids) == computed.ids[: len(ids)]
    assert max(map(len, seen)) == len(computed.ids) - 1
    assert computed.ids[len(PROMPT) + 2 :][:2] == (60, 61)


@pytest.mark.parametrize("penalty", [None, 2.0])
def test_a_fault_of_a_matcher_is_its_own_turn_s(penalty: float | None) -> None:
    """The turns beside it go on, with penalties and without."""
    cpu, logits = torch.device("cpu"), torch.arange(40.0)[None]
    settings = Sampling(max_tokens=4, repetition_penalty=penalty)
    rows = [
        (Sampler(settings, [1], cpu, constraint), logits, ())
        for constraint in (Forcing(2, 4), Refusing(2, 4), None)
    ]
    first, second, third = sample(rows)
    assert first == third == [39]
    assert isinstance(second, RuntimeError)
