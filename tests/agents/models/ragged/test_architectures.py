"""Architectures of transformers: batched where rows are computed as alone, else one by one."""

from functools import cache
from typing import Any

import anyio
import pytest
import torch
from config_sweep import tiny
from rows import Row, ids_of
from tiny import tiny_tokenizer

from unspoken.agents import LocalModel
from unspoken.agents.engines.base import Sampling, TurnRequest
from unspoken.agents.engines.local import LocalEngine
from unspoken.agents.engines.worker import Worker
from unspoken.agents.runtime.states import StateStore
from unspoken.channels.kv.geometry import ModelIdentity

pytestmark = [pytest.mark.anyio, pytest.mark.long]

BATCHED = (
    "arcee",
    "cohere2_moe",
    "ernie4_5_moe",
    "granite",
    "minimax_m2",
    "mixtral",
    "nemotron",
    "olmo3",
    "persimmon",
    "phi3",
    "qwen3_moe",
    "stablelm",
    "vaultgemma",
)
"""A few of those that the sweep counts (tests/samples/config_sweep.py)."""

ONE_BY_ONE = {
    "diffllama": "its attention is its own",
    "doge": "its attention is given attention_mask, which packed rows lack",
    "jetmoe": "packed rows are computed otherwise",
}
"""Attention of another kind, and why its turns are computed one by one."""


@cache
def _model(kind: str) -> LocalModel:
    made = tiny(kind)
    assert made is not None
    model: Any = made[0]
    model.generation_config.eos_token_id = None  # nothing ends a turn before its limit
    return LocalModel(model, tiny_tokenizer(), ref=kind, identity=ModelIdentity(kind, "", ""))


def _generated(model: LocalModel, ids: list[int], count: int) -> tuple[int, ...]:
    """What transformers' `generate` writes."""
    prompt = torch.tensor([ids])
    written = model.hf.generate(  # type: ignore[operator]
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return tuple(written[0, len(ids) :].tolist())


@pytest.mark.parametrize("kind", [*BATCHED, *ONE_BY_ONE])
async def test_turns_at_once_write_what_generate_writes(kind: str) -> None:
    """Three turns on one engine, longer than the windows, and what the engine says of them."""
    model = _model(kind)
    why = model.refuses_batches
    assert why is None if kind in BATCHED else (why or "").startswith(ONE_BY_ONE[kind])
    engine = LocalEngine(model, StateStore(), Worker(kind))
    assert engine.facts.batches is (kind in BATCHED)
    contexts = [ids_of(seed, 9 + 5 * seed, vocabulary=96) for seed in range(3)]
    written: dict[int, tuple[int, ...]] = {}

    async def turn(number: int) -> None:
        request = TurnRequest(ids=tuple(contexts[number]), sampling=Sampling(max_tokens=8))
        outcome = await engine.turn(request, lambda event: None)
        written[number] = outcome.ids[len(contexts[number]) :]

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(turn, number)
    assert written == {number: _generated(model, ids, 8) for number, ids in enumerate(contexts)}


def test_a_model_that_refuses_has_rows_of_transformers() -> None:
    """Its rows are a cache of its own turn, without a slot beside others."""
    model = _model("jetmoe")
    row = Row(model, ids_of(1, 5, vocabulary=96))
    assert model.backbone.tails.taken == 0
    row.rows.close()
