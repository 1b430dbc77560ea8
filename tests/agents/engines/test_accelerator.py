"""An engine on an accelerator: the same contract, one wait a token, and no copy but what it reads.

The accelerator is a fake one (tests/support/fake_device.py), so every machine shows this.
"""

from collections import Counter
from collections.abc import Sequence

import fake_device
import pytest
import torch
from engine_contract import EngineContract, Subject
from engine_turns import PROMPT, take, writes
from fake_device import noted

from unspoken.agents.engines.base import TurnRequest
from unspoken.agents.engines.local import LocalEngine
from unspoken.agents.engines.turn import drive_turn
from unspoken.agents.engines.worker import Worker
from unspoken.agents.models.model import LocalModel
from unspoken.agents.runtime.states import StateStore
from unspoken.agents.testing import tiny_model


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def on_accelerator(model: LocalModel) -> LocalModel:
    """The model, moved to the fake device."""
    fake_device.install()
    return LocalModel(model.hf.to("fake:0"), model.tokenizer, identity=model.identity)


def written(model: LocalModel, ids: Sequence[int], count: int) -> tuple[int, ...]:
    """What a model on the CPU writes."""
    _, computed = drive_turn(model, TurnRequest(ids=tuple(ids), sampling=writes(count)))
    return computed.ids[len(ids) :]


@pytest.fixture(autouse=True)
def _synchronize(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch knows no stream of the fake device to wait for."""

    def wait(device: torch.device) -> None:
        fake_device.notes["wait synchronize"] += 1

    monkeypatch.setattr(torch.accelerator, "synchronize", wait)


class TestOnAnAccelerator(EngineContract):
    @pytest.fixture
    def subject(self) -> Subject:
        states, here = StateStore(), tiny_model()
        engine = LocalEngine(on_accelerator(tiny_model()), states, Worker("fake"))
        return Subject(
            engine,
            lambda: len(states),
            lambda: states.bytes_held,
            lambda ids, count: written(here, ids, count),
        )

    async def test_a_seed_repeats_a_turn(self, subject: Subject) -> None:
        pytest.skip("the fake device draws no random numbers")


@pytest.fixture
async def engine() -> LocalEngine:
    """An engine that has taken a turn: its model is proved then, once."""
    engine = LocalEngine(on_accelerator(tiny_model()), StateStore(), Worker("fake"))
    await take(engine, TurnRequest(ids=PROMPT, sampling=writes(1)))
    return engine


async def noted_of(
    engine: LocalEngine, tokens: int, *, prompt: Sequence[int] = PROMPT, **settings: object
) -> Counter[str]:
    """What a turn waits for and copies."""
    request = TurnRequest(ids=tuple(prompt), sampling=writes(tokens, **settings))
    with noted() as seen:
        await take(engine, request)
    return seen


PENALTIES = {"repetition_penalty": 1.3, "min_tokens": 40, "stop_ids": {2}, "suppressed": (5, 9)}


@pytest.mark.anyio
@pytest.mark.parametrize("settings", [{}, PENALTIES], ids=["plain", "penalties"])
async def test_a_token_waits_once_and_copies_nothing(
    engine: LocalEngine, settings: dict[str, object]
) -> None:
    """Sixteen tokens more are sixteen waits more, for their ids, and nothing else."""
    few = await noted_of(engine, 4, **settings)
    many = await noted_of(engine, 20, **settings)
    assert many - few == Counter({"wait _local_scalar_dense": 16})


@pytest.mark.anyio
async def test_a_prefill_waits_for_nothing_between_its_passes(engine: LocalEngine) -> None:
    """A prompt of many passes waits and copies as often as one of a single pass."""
    short = await noted_of(engine, 1, prompt=PROMPT)
    assert await noted_of(engine, 1, prompt=PROMPT * 20) == short
