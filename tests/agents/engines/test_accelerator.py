"""An engine on an accelerator: the same contract, one wait a round, and no other copy back.

The accelerator is a fake one (tests/support/fake_device.py), so every machine shows this.
"""

from collections import Counter
from collections.abc import Sequence

import anyio
import fake_device
import pytest
import torch
from engine_contract import EngineContract, Subject
from engine_turns import MORE, PROMPT, inbound, message_of, take, writes
from fake_device import noted
from hybrids import make_hybrid
from rows import Row, ids_of, step

from unspoken.agents.engines import asks
from unspoken.agents.engines.base import TurnRequest
from unspoken.agents.engines.local import LocalEngine
from unspoken.agents.engines.sampling import Scorer, sample
from unspoken.agents.engines.turn import drive_turn
from unspoken.agents.engines.worker import Worker, Workers
from unspoken.agents.models.model import LocalModel
from unspoken.agents.runtime.states import StateStore
from unspoken.agents.testing import tiny_model
from unspoken.channels.kv import transfer


def on_accelerator(model: LocalModel, device: str = "fake:0") -> LocalModel:
    """The model, moved to a fake device."""
    fake_device.install()
    return LocalModel(model.hf.to(device), model.tokenizer, identity=model.identity)


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

    @pytest.mark.parametrize("tokens", [0, 5])  # a long one takes seconds here
    async def test_the_footprint_bounds_what_is_kept(self, subject: Subject, tokens: int) -> None:
        await super().test_the_footprint_bounds_what_is_kept(subject, tokens)

    async def test_a_seed_repeats_a_turn(self, subject: Subject) -> None:
        pytest.skip("the fake device draws no random numbers")


@pytest.fixture
def like_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes there goes as to CUDA, through memory that is pinned as far as anybody knows."""
    pins, empty = transfer._pins, transfer._empty

    def as_cuda(device: torch.device) -> torch.device:
        return torch.device("cuda", device.index) if device.type == "fake" else device

    def unpinned(count: int, like: torch.Tensor, *, pinned: bool) -> torch.Tensor:
        return empty(count, like, pinned=False)

    monkeypatch.setattr(transfer, "_pins", lambda *ends: pins(*map(as_cuda, ends)))
    monkeypatch.setattr(transfer, "_empty", unpinned)


@pytest.fixture
async def engine(like_cuda: None) -> LocalEngine:
    """An engine that has taken a turn: its model is proved then, once."""
    engine = LocalEngine(on_accelerator(tiny_model()), StateStore(), Worker("fake"))
    await take(engine, TurnRequest(ids=PROMPT, sampling=writes(1)))
    return engine


async def noted_of(
    engine: LocalEngine,
    tokens: int,
    *,
    prompts: Sequence[Sequence[int]] = (PROMPT,),
    **settings: object,
) -> Counter[str]:
    """What turns beside each other wait for and copy."""
    with noted() as seen:
        async with anyio.create_task_group() as group:
            for prompt in prompts:
                sampling = writes(tokens, **settings)
                request = TurnRequest(ids=tuple(prompt), sampling=sampling)
                group.start_soon(take, engine, request)
    return seen


def waits(seen: Counter[str]) -> Counter[str]:
    """All that the host stood still for."""
    waited = {what for what in seen if what.startswith("wait") or what == "download"}
    return Counter({what: seen[what] for what in waited})


PENALTIES = {"repetition_penalty": 1.3, "min_tokens": 40, "stop_ids": {2}, "suppressed": (5, 9)}


@pytest.mark.anyio
@pytest.mark.parametrize("settings", [{}, PENALTIES], ids=["plain", "penalties"])
async def test_a_round_waits_once(engine: LocalEngine, settings: dict[str, object]) -> None:
    """Sixteen tokens more are sixteen waits more, for their ids; nothing else is read back."""
    few = await noted_of(engine, 4, **settings)
    many = await noted_of(engine, 20, **settings)
    assert waits(many - few) == Counter({"wait tolist": 16})
    assert (many - few)["upload"] == 32  # the ids with their positions, and where their rows go


@pytest.mark.anyio
async def test_rows_beside_each_other_wait_together(engine: LocalEngine) -> None:
    """Four turns wait as often as one, but for rounds in which not all have begun or ended."""
    prompts = [(*PROMPT, 70 + row) for row in range(4)]
    few = await noted_of(engine, 4, prompts=prompts)
    many = await noted_of(engine, 20, prompts=prompts)
    more = waits(many - few)
    assert more.pop("download", 0) <= len(prompts)  # one that begins in a round of its own
    assert set(more) == {"wait tolist"}
    assert 20 <= many["wait tolist"] < 2 * 20  # alone they would be 80
    assert many["upload"] <= 4 * many["wait tolist"]


def test_what_goes_to_the_device_is_not_waited_for(like_cuda: None) -> None:
    """Neither by a step of two hybrids nor by what gives log-probabilities."""
    model = on_accelerator(make_hybrid("lfm2"))
    rows = [Row(model, ids_of(seed, 6 + seed)) for seed in range(2)]
    step(rows)
    with noted() as seen:
        step(rows)
    assert seen["upload"] == 2 and not seen["wait upload"]  # the tokens, and the lengths
    with noted() as seen:
        sample([(Scorer(((5, 6),)), rows[0].logits[-1][None], ())])
    assert seen["upload"] == 1 and not seen["wait upload"]


@pytest.mark.anyio
async def test_a_prefill_waits_for_nothing_between_its_passes(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of many passes waits as often as one of a single pass."""
    monkeypatch.setattr(asks, "most_prefilled", lambda device, beside: 100)
    short = await noted_of(engine, 1)
    long = await noted_of(engine, 1, prompts=[PROMPT * 20])
    assert waits(long) == waits(short) and long["upload"] > short["upload"]


@pytest.mark.anyio
async def test_a_state_crosses_once_for_all_readers_on_a_device(like_cuda: None) -> None:
    """Each device has a worker; three turns on the second read what one wrote on the first."""
    states, workers, here = StateStore(), Workers(), tiny_model()
    sharer, receiver = (
        LocalEngine(model, states, workers.of(model.device))
        for model in (on_accelerator(tiny_model()), on_accelerator(tiny_model(), "fake:1"))
    )
    assert sharer.worker is not receiver.worker
    await take(receiver, TurnRequest(ids=PROMPT, sampling=writes(1)))
    sent = await take(sharer, TurnRequest(ids=PROMPT, keep_state=True))
    message, context = message_of(PROMPT, here.identity), (*PROMPT, *MORE)

    async def read() -> None:
        one = inbound(message, sent.state, context)
        outcome = await take(receiver, TurnRequest(ids=context, inbound=(one,), sampling=writes(4)))
        assert outcome.ids[len(context) :] == written(here, context, 4)
        assert outcome.usage.reused_tokens == len(PROMPT)

    with noted() as seen:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(read)
    assert seen["cross"] == 1
