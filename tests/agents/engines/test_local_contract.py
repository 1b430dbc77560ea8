"""The local engine keeps the contract: on a model that sees all, and on one with a short window."""

from collections.abc import Sequence

import pytest
import torch
from architectures import make
from engine_contract import EngineContract, Subject

from unspoken.agents.engines.local import LocalEngine
from unspoken.agents.engines.worker import Worker
from unspoken.agents.models.model import LocalModel
from unspoken.agents.runtime.states import StateStore


def greedy(model: LocalModel, ids: Sequence[int], count: int) -> tuple[int, ...]:
    """What transformers' `generate` writes."""
    prompt = torch.tensor([list(ids)])
    written = model.hf.generate(  # type: ignore[operator]
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
    )
    return tuple(written[0, len(ids) :].tolist())


@pytest.mark.parametrize("name", ["llama", "gemma3"])
class TestLocalEngine(EngineContract):
    @pytest.fixture
    def subject(self, name: str) -> Subject:
        model, states = make(name), StateStore()
        engine = LocalEngine(model, states, Worker("contract"))
        return Subject(
            engine,
            lambda: len(states),
            lambda: states.bytes_held,
            lambda ids, n: greedy(model, ids, n),
        )
