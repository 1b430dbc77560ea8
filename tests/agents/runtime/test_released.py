"""States that a run holds, and when it lets them go."""

import gc
import weakref
from collections.abc import Generator
from contextlib import aclosing
from typing import Any

import pytest
import torch
from flows import DOCUMENT, reader_solver, sound
from runs import CACHE, FEW, GIVEN, TEXT, chain, draft_and_critic, fan_out

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.engines.worker import Workers
from unspoken.agents.events import Event, TokenWritten, TurnStarted
from unspoken.agents.loading import engines_for
from unspoken.agents.planning.planner import plan_workflow
from unspoken.agents.runtime.scheduler import Scheduler
from unspoken.agents.runtime.states import StateRef, StateStore
from unspoken.agents.testing import tiny_model
from unspoken.channels import KVState

pytestmark = pytest.mark.anyio

Stored = tuple[weakref.ref[torch.Tensor], int]


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[Stored]:
    """The first layer's keys of each state that a run stores, weakly held, and their place."""
    states: list[Stored] = []
    put = StateStore.put

    def spy(store: StateStore, state: KVState, *args: Any) -> StateRef:
        keys = state.layers[0].keys
        states.append((weakref.ref(keys), keys.data_ptr()))
        return put(store, state, *args)

    monkeypatch.setattr(StateStore, "put", spy)
    return states


async def test_receivers_of_one_reader_share_its_state(
    model: LocalModel, stored: list[Stored]
) -> None:
    """Three receivers get one and the same memory, and each writes what it writes over text."""
    state = await fan_out(model, CACHE).arun(document=DOCUMENT)
    words = await fan_out(model, TEXT).arun(document=DOCUMENT)
    assert state.outputs == words.outputs
    assert len({place for _, place in stored}) == 1
    assert all(edge.reused >= edge.tokens for edge in sound(state.report).edges)


async def test_a_state_is_freed_once_its_reader_has_read_it(model: LocalModel) -> None:
    """When the third of a chain starts, the first one's state is gone."""
    flow = chain(model, CACHE)
    flow.load()
    models = dict.fromkeys(flow.spec.agents, model)
    held: dict[str, int] = {}

    def emit(event: Event) -> None:
        if isinstance(event, TurnStarted):
            held[event.agent] = len(states)

    states = StateStore()
    scheduler = Scheduler(
        flow.spec,
        models=models,
        engines=engines_for(models, states, Workers()),
        states=states,
        plan=plan_workflow(flow.spec, models),
        inputs={"document": DOCUMENT},
        emit=emit,
    )
    await scheduler.run()
    assert held == {"a": 0, "b": 1, "c": 1}
    assert len(states) == 0


async def test_an_agent_that_remembers_lets_go_of_what_it_read(
    model: LocalModel, stored: list[Stored]
) -> None:
    """Once a message is in the agent's own state, its tensors are gone."""
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    writer = Agent("writer", model, prompt="turn {{ turn }}", generate=FEW, max_turns=2)
    flow = Workflow("w", [reader, writer]).connect(reader, writer, CACHE)
    flow.connect(writer, writer, TEXT, loop=True)
    alive = []
    async with aclosing(flow.stream(document=DOCUMENT)) as events:
        async for event in events:
            if isinstance(event, TokenWritten) and event.turn == 2 and not alive:
                gc.collect()
                alive.append(stored[0][0]() is not None)
    assert alive == [False]


async def test_what_is_only_continued_keeps_no_unseen_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a sliding layer a continuation's state holds what the next token sees, a splice's all."""
    model = tiny_model(family="gemma3")
    kept: dict[str, KVState] = {}
    put = StateStore.put

    def spy(
        store: StateStore, state: KVState, ids: tuple[int, ...], holder: str, *more: Any
    ) -> StateRef:
        kept[holder] = state
        return put(store, state, ids, holder, *more)

    monkeypatch.setattr(StateStore, "put", spy)
    for system, mode in ((None, "continuation"), ("Be brief.", "splice")):
        result = await reader_solver(model, model, CACHE, system).arun(**GIVEN)
        text = await reader_solver(model, model, TEXT, system).arun(**GIVEN)
        assert sound(result.report).edges[0].mode == mode
        assert system or result.outputs == text.outputs
        rows = [layer.rows for layer in kept["reader -> solver"].layers]
        assert (min(rows) == 7) == (mode == "continuation") and max(rows) > 50


@pytest.mark.parametrize("memory", ["run", "turn"])
async def test_no_state_outlives_its_run(
    model: LocalModel, stored: list[Stored], memory: str
) -> None:
    """After a loop with caches, every state that was kept is gone."""
    flow = draft_and_critic(model, memory, CACHE)
    result = await flow.arun(document=DOCUMENT)
    # The worker's thread has left the last job once it is done with another one.
    await flow._execution.workers.of(model.device).run(_nothing(), lambda event: None)
    gc.collect()
    assert len(stored) >= 6 and all(keys() is None for keys, _ in stored)
    assert result.report.peak_state_bytes > 0


def _nothing() -> Generator[None, None, None]:
    yield
