"""Runs that fail, take too long, fall back, or are left before their end."""

import threading
from collections.abc import Generator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import anyio
import pytest
from flows import Pair, reader_solver, sound
from processes import LIMIT_S
from runs import CACHE, FEW, GIVEN, TEXT, events_of

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.engines import asks, stepping
from unspoken.agents.events import Event, FallbackTaken, RunFinished, TokenWritten
from unspoken.channels import SameModelCacheChannel, TextChannel
from unspoken.channels.errors import (
    AgentError,
    ContextLengthError,
    RunTimeout,
    StateError,
    TemplateError,
)

pytestmark = [pytest.mark.anyio, pytest.mark.event_loops]


async def test_an_agent_that_takes_too_long_is_named(model: LocalModel) -> None:
    """An agent's timeout ends the run."""
    slow = Agent("slow", model, prompt="x", generate={"max_new_tokens": 1000}, timeout=1e-6)
    with pytest.raises(RunTimeout, match="agent 'slow' took longer") as caught:
        await Workflow("w", [slow]).arun()
    assert caught.value.agent == "slow"


async def test_a_run_that_takes_too_long_ends(model: LocalModel) -> None:
    """The workflow's timeout ends the run, and names no agent."""
    slow = Agent("slow", model, prompt="x", generate={"max_new_tokens": 1000})
    with pytest.raises(RunTimeout, match="the run took longer") as caught:
        await Workflow("w", [slow], timeout=1e-6).arun()
    assert caught.value.agent == ""


class _Clock:
    """The clock of everybody's work, which goes on when a test says so, and not by itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        for module in (stepping, asks):
            monkeypatch.setattr(module, "perf_counter", lambda: self.now)


async def test_waiting_for_the_device_is_no_work(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent within its limit alone is so, though it waits longer for another's work."""
    agent = Agent("a", model, prompt="x", generate={"max_new_tokens": 4}, timeout=1.5)
    flow, clock, waits = Workflow("w", [agent]), _Clock(monkeypatch), threading.Event()
    await flow.arun()
    worker, started = flow._execution.workers.of(model.device), anyio.Event()
    token = anyio.lowlevel.current_token()

    def busy() -> Generator[str, None, None]:
        anyio.from_thread.run_sync(started.set, token=token)
        assert waits.wait(LIMIT_S)
        clock.now += 2
        yield "done"

    async def turn_that_waits() -> None:
        report = (await flow.arun()).report
        assert clock.now == 2 > 1.5 > report.agents["a"][0].seconds

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker.run, busy(), lambda event: None)
        await started.wait()
        tasks.start_soon(turn_that_waits)
        while not worker._new:  # noqa: ASYNC110 - a turn that is handed over has no event
            await anyio.sleep(0.001)
        waits.set()


async def test_every_item_has_the_whole_timeout(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent's timeout bounds each item of for_each, not all of them together."""
    each = Agent("each", model, prompt="{{ item }}", generate=FEW, for_each="inputs.rows")
    clock, compute = _Clock(monkeypatch), model.compute

    def a_second(*args: Any, **kwargs: Any) -> Any:
        clock.now += 1
        return compute(*args, **kwargs)

    monkeypatch.setattr(model, "compute", a_second)
    rows = ["x"] * 8  # each takes two to six forwards
    report = (await Workflow("w", [replace(each, timeout=10)]).arun(rows=rows)).report
    assert sum(turn.seconds for turn in report.agents["each"]) > 10
    with pytest.raises(RunTimeout, match="agent 'each'"):
        await Workflow("w", [replace(each, timeout=1)]).arun(rows=rows)


class _Late(TextChannel):
    """A channel whose other side does not answer."""

    name = "late"

    def carry(self, *args: Any, **kwargs: Any) -> Any:
        raise TimeoutError("no answer")


@pytest.mark.parametrize("limit", [None, 60.0])
async def test_a_timeout_of_something_else_is_not_the_agents(
    model: LocalModel, limit: float | None
) -> None:
    """What a channel or an engine waits for in vain is its own error, with its own words."""
    a, b = (
        Agent("a", model, prompt="x", generate=FEW),
        Agent("b", model, prompt="y", timeout=limit),
    )
    flow = Workflow("w", [a, b], timeout=limit).connect(a, b, _Late())
    with pytest.raises(AgentError, match="no answer") as caught:
        await flow.arun()
    assert "timeout of" not in str(caught.value)


async def test_the_workflows_timeout_covers_loading(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that takes too long ends the run in time, and says so."""
    release, loaded = threading.Event(), list[str]()

    def load(ref: str, **settings: Any) -> LocalModel:
        assert release.wait(LIMIT_S)
        loaded.append(ref)
        return model

    monkeypatch.setattr(LocalModel, "load", load)
    slow = Workflow("w", [Agent("a", model.ref, prompt="x", generate=FEW)], timeout=0.05)
    try:
        with pytest.raises(RunTimeout, match="the run took longer") as caught:
            await slow.arun()
        assert not loaded
        assert "loaded" in caught.value.expected
    finally:
        release.set()


async def test_a_failing_agent_stops_the_others(model: LocalModel) -> None:
    """The error names the agent, its cause is chained, and the other one stops writing."""
    good = Agent("good", model, prompt="x", generate={"max_new_tokens": 1500})
    bad = Agent("bad", model, prompt="{{ inputs.rows[5] }}", generate=FEW)
    flow = Workflow("w", [good, bad], inputs={"rows": "list"})
    seen: list[Event] = []

    async def follow() -> None:
        async with aclosing(flow.stream(rows=[])) as events:
            async for event in events:
                seen.append(event)

    for run in (follow, lambda: flow.arun(rows=[])):
        with pytest.raises(AgentError, match="agent 'bad' failed") as caught:
            await run()
        assert caught.value.agent == "bad"
        assert isinstance(caught.value.__cause__, TemplateError)
    assert len(seen) < 1500


async def test_too_long_a_prompt_is_an_error_of_the_input(model: LocalModel) -> None:
    """A prompt past the model's context is exit code 2 and says how long it may be."""
    with pytest.raises(AgentError, match="tokens") as caught:
        await reader_solver(model, model).arun(document="the reader " * 3000, question="x")
    assert caught.value.agent == "reader" and caught.value.exit_code == 2
    assert isinstance(caught.value.__cause__, ContextLengthError)
    assert "2048" in caught.value.expected


async def test_a_channel_that_fails_gives_way_to_text(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fallback: text the words are read instead, and the report and an event say why."""
    expected = await reader_solver(model, model, TEXT).arun(**GIVEN)
    monkeypatch.setattr(SameModelCacheChannel, "carry", _broken)
    happened = await events_of(reader_solver(model, model, CACHE), **GIVEN)
    result = happened[-1]
    assert isinstance(result, RunFinished)
    assert result.outputs == expected.outputs
    (fallback,) = [event for event in happened if isinstance(event, FallbackTaken)]
    assert (fallback.sharer, fallback.receiver) == ("reader", "solver")
    assert "the state is broken" in fallback.reason
    assert result.report.fallbacks == (("reader -> solver", fallback.reason),)
    (edge,) = sound(result.report).edges
    assert (edge.planned, edge.channel) == (CACHE, TEXT)


async def test_a_channel_that_fails_and_must_not_fall_back_ends_the_run(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fallback: error the error names agent and edge."""
    monkeypatch.setattr(SameModelCacheChannel, "carry", _broken)
    with pytest.raises(AgentError, match="the state is broken") as caught:
        await reader_solver(model, model, CACHE, fallback="error").arun(**GIVEN)
    assert (caught.value.agent, caught.value.edge) == ("solver", "reader -> solver")
    assert caught.value.exit_code == 1


def _broken(*args: object) -> object:
    raise StateError("the state is broken")


async def test_other_weights_go_by_text_with_the_reason(models: Pair) -> None:
    """Between models that differ in one weight, auto takes text, and names the weights."""
    flow = reader_solver(*models)
    (edge,) = flow.plan().edges
    assert (edge.channel, edge.fallback is not None) == (TEXT, False)
    expected = await reader_solver(*models, TEXT).arun(**GIVEN)
    result = await flow.arun(**GIVEN)
    assert result.outputs == expected.outputs and result.report.fallbacks == ()


async def test_a_cache_asked_for_between_other_weights_is_a_recorded_fallback(models: Pair) -> None:
    """A cache by name that is not available is text, and the run says so once."""
    result = await reader_solver(*models, CACHE).arun(**GIVEN)
    ((edge, reason),) = result.report.fallbacks
    assert edge == "reader -> solver" and "other weights" in reason


async def test_breaking_out_of_a_stream_stops_after_the_operation_under_way(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving the loop waits for one forward, and no other follows."""
    compute, calls = model.compute, 0
    under_way, release = anyio.Event(), threading.Event()
    token = anyio.lowlevel.current_token()

    def slow(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            anyio.from_thread.run_sync(under_way.set, token=token)
            release.wait(LIMIT_S)
        return compute(*args, **kwargs)

    monkeypatch.setattr(model, "compute", slow)
    flow = Workflow("w", [Agent("a", model, prompt="x", generate={"max_new_tokens": 1000})])

    async def release_soon() -> None:
        await anyio.wait_all_tasks_blocked()
        release.set()

    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks, aclosing(flow.stream()) as events:
            async for event in events:
                if isinstance(event, TokenWritten):
                    await under_way.wait()
                    tasks.start_soon(release_soon)
                    break
    assert calls == 3
