"""Runs over the items of a list: beside each other, in order, and one of which fails."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from runs import events_of

from unspoken.agents import Agent, Workflow
from unspoken.agents.events import (
    Event,
    ItemFailed,
    MessageCarried,
    RunFinished,
    TokenWritten,
    TurnFinished,
    TurnStarted,
)
from unspoken.agents.runtime.items import MOST_ITEMS, Ready, gather
from unspoken.agents.testing import ScriptedModel
from unspoken.channels import AgentError, ContextLengthError, RunTimeout, WorkflowError

ROWS = ["short", "brief", "long " * 200, "small"]


def bulk(**settings: Any) -> Workflow:
    """A reader that runs over rows on a model of a short context, and one that reads it."""
    model = ScriptedModel(lambda agent, turn, prompt: f"{agent} {turn}", max_positions=128)
    reader = Agent("reader", model, prompt="{{ item }}", for_each="inputs.rows", **settings)
    last = Agent("last", model, prompt="[{{ reader.text }}]", generate=None)
    flow = Workflow("bulk", [reader, last], outputs={"read": "{{ last.text }}"})
    return flow.connect(reader, last)


def answers(*lengths: int) -> tuple[Workflow, dict[str, Any]]:
    """A reader whose items write so many words each, and what it runs over."""

    def answer(agent: str, turn: int, prompt: str) -> str:
        return f"{turn} the " + "of " * lengths[turn - 1]

    first = Agent("first", ScriptedModel({"first": "words"}), prompt="x")
    generate = {"max_new_tokens": 1000}
    settings: dict[str, Any] = {"for_each": "inputs.rows", "generate": generate}
    reader = Agent("reader", ScriptedModel(answer), prompt="{{ item }}", **settings)
    flow = Workflow("bulk", [first, reader]).connect(first, reader)
    return flow, {"rows": [str(number) for number in range(len(lengths))]}


def under_way(events: list[Event]) -> list[int]:
    """How many of the reader's items were under way at each of its events."""
    counts, began = [], set[int | None]()
    for event in events:
        if isinstance(event, TokenWritten | TurnFinished) and event.agent == "reader":
            (began.add if isinstance(event, TokenWritten) else began.remove)(event.item)
            counts.append(len(began))
    return counts


async def taken(count: int, *, waits: bool) -> tuple[list[int], int]:
    """The order in which turns begin that are ready together, and how many tasks take them."""
    order, tasks, go_on = list[int](), set[int](), anyio.Event()

    async def take(turn: int) -> None:
        order.append(turn)
        tasks.add(anyio.get_current_task().id)
        if turn == count - 1:
            go_on.set()
        if waits:
            await go_on.wait()

    ready = Ready(take)
    ready.turns.extend(range(count))
    async with anyio.create_task_group() as group:
        await ready.work(group)
    return order, len(tasks)


@pytest.mark.anyio
async def test_a_turn_that_waits_holds_up_no_other() -> None:
    """Each has a task of its own then, and they begin in order."""
    assert await taken(20, waits=True) == (list(range(20)), 20)


@pytest.mark.anyio
async def test_turns_that_never_wait_share_tasks() -> None:
    """They begin in order too; another task comes in where the event loop is owed its time."""
    order, tasks = await taken(1000, waits=False)
    assert order == list(range(1000))
    assert tasks < 500


@pytest.mark.anyio
async def test_each_item_starts_and_finishes_as_a_turn_of_its_own() -> None:
    """Its index, and how many there are, stand in its events and in its row of the report."""
    flow, given = answers(2, 1)
    events = await events_of(flow, **given)
    begun = [one for one in events if isinstance(one, TurnStarted) and one.agent == "reader"]
    assert [(one.item, one.of) for one in begun] == [(0, 2), (1, 2)]
    ended = [one for one in events if isinstance(one, TurnFinished) and one.agent == "reader"]
    assert {one.item for one in ended} == {0, 1}
    assert isinstance(events[-1], RunFinished)
    assert [row.item for row in events[-1].report.agents["reader"]] == [0, 1]


def test_a_receiver_reads_each_item() -> None:
    """Its prompt numbers the items, also for a condition; one that failed is empty."""
    model = ScriptedModel(lambda agent, turn, prompt: f"{agent} {turn}", max_positions=128)
    settings: dict[str, Any] = {"for_each": "inputs.rows", "on_error": "skip"}
    reader = Agent("reader", model, prompt="{{ item }}", **settings)
    prompt = "{% for text in reader.items %}{{ loop.index }}) {{ text }}\n{% endfor %}"
    judge = Agent("judge", model, prompt=prompt)
    flow = Workflow("bulk", [reader, judge])
    flow.connect("reader", judge, when="reader.items | length == 4")
    result = flow.run(rows=ROWS)
    assert result["reader"].items == ("reader 1", "reader 2", "", "reader 4")
    (read,) = result.report.agents["judge"][0].prompt[-1:]
    assert read.text == "1) reader 1\n2) reader 2\n3) \n4) reader 4\n"


@pytest.mark.anyio
async def test_items_are_under_way_beside_each_other() -> None:
    """All of a short list are, so that an engine can compute them in one forward."""
    flow, given = answers(*[200] * 5)
    assert max(under_way(await events_of(flow, **given))) == 5


@pytest.mark.anyio
async def test_the_items_under_way_are_bounded() -> None:
    """Of a long list the first some are, and the others begin as these end."""
    began, go_on = list[int](), anyio.Event()

    async def work(number: int) -> int:
        began.append(number)
        await go_on.wait()
        return number

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ended, work)
        await anyio.wait_all_tasks_blocked()
        assert began == list(range(MOST_ITEMS))
        go_on.set()
    assert began == list(range(MOST_ITEMS + 40))


async def ended(work: Callable[[int], Awaitable[int]]) -> None:
    """All of a long list have ended, in their order."""
    numbers = range(MOST_ITEMS + 40)
    assert await gather(len(numbers), work, anyio.lowlevel.checkpoint) == list(numbers)


@pytest.mark.anyio
async def test_items_that_end_in_another_order_stand_in_theirs() -> None:
    """Results, words, turns and messages of the report are in the order of the list."""
    flow, given = answers(200, 100, 1)
    result = await flow.arun(**given)
    words = result["reader"].items
    assert [text.split()[0] for text in words] == ["1", "2", "3"]
    assert result["reader"].text == "\n\n".join(words)
    turns = result.report.agents["reader"]
    assert [turn.item for turn in turns] == [0, 1, 2]
    assert turns[0].generated_tokens > turns[1].generated_tokens > turns[2].generated_tokens
    assert [edge.item for edge in result.report.edges] == [0, 1, 2]
    assert [turn.item for turn in result.report.agents["first"]] == [None]


@pytest.mark.anyio
async def test_each_event_says_its_item() -> None:
    """The words of each can be told apart, and a shorter one ends before a longer one."""
    flow, given = answers(200, 100, 1)
    events = await events_of(flow, **given)
    ended = [event for event in events if isinstance(event, TurnFinished)]
    assert [event.item for event in ended] == [None, 2, 1, 0]
    written = [event for event in events if isinstance(event, TokenWritten)]
    for end in ended:
        whose = (end.agent, end.item)
        mine = [event.text for event in written if (event.agent, event.item) == whose]
        assert "".join(mine) == end.text
    carried = [event.edge.item for event in events if isinstance(event, MessageCarried)]
    assert sorted(number for number in carried if number is not None) == [0, 1, 2]


def test_an_item_that_fails_is_left_out_where_the_agent_says_so() -> None:
    """With on_error: skip the others are there, in their places, and the report has the error."""
    result = bulk(on_error="skip").run(rows=ROWS)
    assert result["reader"].items == ("reader 1", "reader 2", "", "reader 4")
    assert result.outputs["read"] == "[reader 1\n\nreader 2\n\nreader 4]"
    (failed,) = result.report.to_dict()["failed_items"]
    assert (failed["agent"], failed["turn"], failed["item"]) == ("reader", 1, 2)
    assert "agent 'reader', item 3 of 4 failed: the context has" in failed["error"]


@pytest.mark.anyio
async def test_a_failed_item_is_an_event() -> None:
    """Who follows the events learns of it as it happens."""
    events = [event async for event in bulk(on_error="skip").stream(rows=ROWS)]
    (failed,) = [event for event in events if isinstance(event, ItemFailed)]
    assert (failed.agent, failed.item) == ("reader", 2)


def test_items_that_all_fail_leave_nothing() -> None:
    """Each has its error, and the readers run on without words."""
    result = bulk(on_error="skip").run(rows=ROWS[2:3] * 2)
    assert result["reader"].items == ("", "")
    assert [failed.item for failed in result.report.failed_items] == [0, 1]


def test_the_error_of_an_item_carries_what_had_finished() -> None:
    """Without on_error the run ends; the error names the item and has the finished ones."""
    last = MOST_ITEMS + 2
    rows = ["short"] * last + ROWS[2:]
    with pytest.raises(AgentError, match=f"item {last + 1} of {len(rows)} failed") as caught:
        bulk().run(rows=rows)
    assert isinstance(caught.value.__cause__, ContextLengthError)
    assert caught.value.exit_code == ContextLengthError.exit_code
    partial = caught.value.partial
    items, turns = partial["reader"].items, partial.report.agents["reader"]
    finished = [number for number, text in enumerate(items) if text]
    assert finished[:3] == [0, 1, 2] and items[:2] == ("reader 1", "reader 2")
    assert items[last:] == ("", "") and [turn.item for turn in turns] == finished


@pytest.mark.anyio
async def test_an_item_that_fails_stops_the_others() -> None:
    """None of them writes on to its end, and none is left out in silence."""
    model = ScriptedModel({"reader": "word " * 2000}, max_positions=4096)
    generate = {"max_new_tokens": 3000}
    reader = Agent("reader", model, prompt="{{ item }}", for_each="inputs.rows", generate=generate)
    rows = ["short", "long " * 4096, "small"]
    with pytest.raises(AgentError, match="item 2 of 3 failed") as caught:
        await Workflow("bulk", [reader]).arun(rows=rows)
    assert caught.value.partial["reader"].items == ("", "", "")
    assert caught.value.partial.report.agents["reader"] == ()
    assert caught.value.partial.report.failed_items == ()


def test_the_error_of_a_run_carries_the_agents_that_had_finished() -> None:
    """An agent that fails later loses nobody's words."""
    model = ScriptedModel({"first": "words"})
    flow = Workflow("w", [Agent(name, model, prompt="x") for name in ("first", "second")])
    with pytest.raises(AgentError, match="agent 'second' failed") as caught:
        flow.connect("first", "second").run()
    assert caught.value.partial["first"].text == "words"
    assert caught.value.partial["second"].text == ""


def test_the_error_of_a_run_that_takes_too_long_carries_what_had_finished() -> None:
    """The workflow's own timeout loses no words either."""
    model = ScriptedModel({"first": "words", "second": "word " * 3000})
    agents = [
        Agent("first", model, prompt="x"),
        Agent("second", model, prompt="x", generate={"max_new_tokens": 10_000}),
    ]
    limit, finished = 0.1, ""
    while not finished:  # in a time that is long enough for the first on this machine
        flow = Workflow("w", agents, timeout=limit).connect("first", "second")
        with pytest.raises(RunTimeout, match="the run took longer") as caught:
            flow.run()
        finished, limit = caught.value.partial["first"].text, 2 * limit
    assert finished == "words"


@pytest.mark.parametrize(
    "settings", [{"on_error": "default"}, {"default": "x"}, {"on_error": "skip", "default": "x"}]
)
def test_a_default_and_its_on_error_need_each_other(settings: Any) -> None:
    """One without the other says nothing."""
    with pytest.raises(WorkflowError, match="default"):
        Agent("a", "m", prompt="x", **settings)
