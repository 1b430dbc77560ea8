"""A run followed event by event: who follows it, who leaves early, and who falls behind."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from processes import LIMIT_S
from runs import FEW

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.engines.drafts import LONGEST
from unspoken.agents.engines.worker import AHEAD
from unspoken.agents.events import Event, ItemFailed, RunFinished, TokenWritten
from unspoken.agents.runtime.items import MOST_ITEMS
from unspoken.agents.runtime.report import RunReport
from unspoken.agents.runtime.scheduler import Scheduler
from unspoken.agents.runtime.stream import MOST_WAITING, RunStream
from unspoken.agents.testing import ScriptedModel
from unspoken.channels.errors import AgentError, InputError

pytestmark = [pytest.mark.anyio, pytest.mark.event_loops]

ENOUGH = {"max_new_tokens": MOST_WAITING + 60}
"""Of a run that waits for a follower who takes nothing."""


@pytest.fixture
def long(model: LocalModel) -> Workflow:
    return Workflow("long", [Agent("a", model, prompt="on", generate={"max_new_tokens": 1500})])


@pytest.fixture
def short(model: LocalModel) -> Workflow:
    return Workflow("short", [Agent("b", model, prompt="a word", generate=FEW)])


async def begun(flow: Workflow) -> RunStream:
    """The stream of a run that has written its first tokens."""
    stream = flow.stream()
    assert isinstance(stream, RunStream)
    count = 0
    async for event in stream:
        count += isinstance(event, TokenWritten)
        if count == 3:
            break
    return stream


async def until(true: Callable[[], object]) -> None:
    """Wait for what happens in another task."""
    with anyio.fail_after(LIMIT_S):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await anyio.sleep(0.01)


@pytest.fixture
def under_way(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The runs that have begun and have not ended."""
    runs, run = set[str](), Scheduler.run

    async def watched(self: Scheduler) -> RunReport:
        runs.add(self.run_id)
        try:
            return await run(self)
        finally:
            runs.remove(self.run_id)

    monkeypatch.setattr(Scheduler, "run", watched)
    return runs


def waiting(stream: RunStream) -> int:
    """Events that wait for the follower."""
    return stream._events.waiting


async def test_a_break_without_closing_leaves_the_next_run_alone(
    long: Workflow, short: Workflow, caplog: pytest.LogCaptureFixture, under_way: set[str]
) -> None:
    """The run that was left ends, the next one gives its answer, and no loop complains."""
    alone = (await short.arun())["b"].text
    with anyio.fail_after(LIMIT_S), caplog.at_level(logging.WARNING):
        async for event in long.stream():
            if isinstance(event, TokenWritten):
                break
        assert (await short.arun())["b"].text == alone
        await until(lambda: not under_way)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_stream_that_is_kept_open_holds_up_no_other_run(
    long: Workflow, short: Workflow, under_way: set[str]
) -> None:
    """Somebody who still has the stream may run others, and close it later."""
    with anyio.fail_after(LIMIT_S):
        stream = await begun(long)
        assert (await short.arun())["b"].text
        assert isinstance(await anext(stream), TokenWritten)
        await stream.aclose()
        await until(lambda: not under_way)
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_a_stream_may_be_closed_by_another_task(long: Workflow, under_way: set[str]) -> None:
    """No cancel scope is tied to the task that began to follow."""
    stream = await begun(long)
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.aclose)
        await until(lambda: not under_way)


async def test_a_cancel_of_the_follower_ends_the_run(long: Workflow, under_way: set[str]) -> None:
    """A deadline around the loop ends what it follows, and nothing else."""
    with anyio.fail_after(LIMIT_S):
        with anyio.move_on_after(0.2) as scope:
            async for _ in long.stream():
                pass
        assert scope.cancelled_caught
        await until(lambda: not under_way)


async def test_an_error_in_the_loop_ends_the_run(long: Workflow, under_way: set[str]) -> None:
    """What the loop raises is raised as it is."""

    async def follow() -> None:
        async for _ in long.stream():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await follow()
    await until(lambda: not under_way)


async def test_a_failed_run_raises_its_own_error(model: LocalModel) -> None:
    """The events before it come first, and the error is in no group."""
    bad = Agent("bad", model, prompt="{{ inputs.rows[5] }}", generate=FEW)
    seen: list[Event] = []

    async def follow() -> None:
        async for event in Workflow("w", [bad], inputs={"rows": "list"}).stream(rows=[]):
            seen.append(event)

    with pytest.raises(AgentError, match="agent 'bad' failed"):
        await follow()
    assert seen


async def test_a_wrong_input_is_told_when_the_stream_begins(short: Workflow) -> None:
    """The first event that is asked for raises it."""
    stream = short.stream(nothing=1)
    with pytest.raises(InputError):
        await anext(stream)


async def test_a_follower_that_falls_behind_stops_the_run_for_the_while(
    model: LocalModel, short: Workflow
) -> None:
    """Some hundred events wait, no more; other runs go on, and nothing is lost."""
    writer = Agent("a", model, prompt="on", generate=ENOUGH)
    flow, whole = Workflow("w", [writer]), list[Event]()
    stream = flow.stream()
    assert isinstance(stream, RunStream)
    async with aclosing(stream):
        async for event in stream:
            whole.append(event)
            if len(whole) == 5:
                await until(lambda: waiting(stream) >= MOST_WAITING)
                assert (await short.arun())["b"].text
                assert waiting(stream) <= MOST_WAITING + 8
    words = "".join(event.text for event in whole if isinstance(event, TokenWritten))
    assert isinstance(whole[-1], RunFinished) and words == whole[-1].outputs["a"]


async def settled(stream: RunStream) -> int:
    """Events that wait once no more are made."""
    await until(lambda: waiting(stream) >= MOST_WAITING)
    before = -1
    while before != waiting(stream):
        before = waiting(stream)
        await anyio.sleep(0.1)
    return before


async def test_many_agents_at_once_wait_for_their_follower() -> None:
    """Each adds a few events to those that wait, a guess's tokens too, and loses none."""
    names = [f"a{number}" for number in range(40)]
    model = ScriptedModel(dict.fromkeys(names, "the of " * 15))
    agents = [Agent(name, model, prompt="x", generate={"max_new_tokens": 60}) for name in names]
    stream = Workflow("w", agents).stream()
    assert isinstance(stream, RunStream)
    events = [await anext(stream)]
    assert await settled(stream) <= MOST_WAITING + (AHEAD + LONGEST + 2) * len(names)
    events += [event async for event in stream]
    written = [event for event in events if isinstance(event, TokenWritten)]
    assert isinstance(events[-1], RunFinished)
    for name, text in events[-1].outputs.items():
        assert text == "".join(event.text for event in written if event.agent == name)


async def test_items_that_fail_wait_for_their_follower() -> None:
    """Events that no turn makes are bounded too, however long the list is."""
    model = ScriptedModel({"each": "x"}, max_positions=64)
    settings: dict[str, Any] = {"for_each": "inputs.rows", "on_error": "skip"}
    stream = Workflow("w", [Agent("each", model, prompt="{{ item }}", **settings)]).stream(
        rows=["the of " * 64] * 400
    )
    assert isinstance(stream, RunStream)
    events = [await anext(stream)]
    assert await settled(stream) <= MOST_WAITING + MOST_ITEMS
    events += [event async for event in stream]
    assert [type(event) for event in events].count(ItemFailed) == 400


async def test_the_slowest_of_several_followers_is_waited_for(model: LocalModel) -> None:
    """Each gets every event; nothing is lost, and few wait for the slow one."""
    writer = Agent("a", model, prompt="on", generate=ENOUGH)
    stream = Workflow("w", [writer]).stream()
    assert isinstance(stream, RunStream)
    also, seen = stream.also(), list[Event]()

    async def slowly() -> None:
        seen.append(await anext(also))
        assert await settled(stream) <= MOST_WAITING + AHEAD + LONGEST + 2
        seen.extend([event async for event in also])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(slowly)
        events = [event async for event in stream]
    assert seen == events and isinstance(events[-1], RunFinished)
    with pytest.raises(InputError, match="gets no more followers"):
        stream.also()


@pytest.mark.parametrize("closes", [True, False])
async def test_a_follower_that_leaves_holds_up_nobody(model: LocalModel, closes: bool) -> None:
    """Closed or dropped, it is no longer waited for."""
    writer = Agent("a", model, prompt="on", generate=ENOUGH)
    stream = Workflow("w", [writer]).stream()
    assert isinstance(stream, RunStream)
    also = stream.also()
    await anext(stream)
    await anext(also)
    if closes:
        await also.aclose()
    del also
    assert isinstance([event async for event in stream][-1], RunFinished)


async def test_a_run_that_waits_for_its_follower_can_be_left(model: LocalModel) -> None:
    """Closing does not wait for room that never comes."""
    writer = Agent("a", model, prompt="on", generate={"max_new_tokens": 1500})
    stream = await begun(Workflow("w", [writer]))
    await until(lambda: waiting(stream) >= MOST_WAITING)
    with anyio.fail_after(LIMIT_S):
        await stream.aclose()


def test_a_stream_left_on_a_loop_that_ends_is_ended(long: Workflow, short: Workflow) -> None:
    """A program may leave a stream open to the end of its loop; the next loop runs as ever."""

    async def leave(keep: Callable[[Any], None]) -> None:
        keep(await begun(long))

    for backend in ("asyncio", "trio"):
        kept: list[Any] = []
        anyio.run(leave, kept.append, backend=backend)
        kept.clear()
        assert short.run()["b"].text


def test_a_run_in_a_running_loop_has_a_thread_of_its_own(short: Workflow) -> None:
    """`run` in a notebook's cell gives what it gives elsewhere."""
    alone = short.run()["b"].text

    async def cell() -> str:
        return short.run()["b"].text

    assert anyio.run(cell) == alone == anyio.run(cell, backend="trio")

    async def callback() -> str:
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: ended.set_result(short.run()["b"].text))
        return await ended

    assert asyncio.run(callback()) == alone
