"""Turns that fail and end no run: skips, defaults, further tries, and limits of silence."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
import stamina
from runs import events_of
from stamina.instrumentation import set_on_retry_hooks

from unspoken.agents import Agent, Workflow
from unspoken.agents.authoring import States, TurnEvent, TurnRequest
from unspoken.agents.events import (
    AgentSkipped,
    MessageDropped,
    RunFinished,
    TurnFailed,
    TurnFinished,
    TurnRetried,
)
from unspoken.agents.runtime.failures import _quiet_stamina
from unspoken.agents.runtime.report import EmptyTurn
from unspoken.agents.spec.graph import validate
from unspoken.agents.testing import ScriptedModel
from unspoken.channels import AgentError, InputError, RunTimeout

pytestmark = [pytest.mark.anyio, pytest.mark.event_loops]

AT_ONCE = {"attempts": 3, "wait": 0}


Before = Callable[[str], Awaitable[None]]


class _Engine:
    """An engine elsewhere: something happens before each of its turns."""

    def __init__(self, engine: Any, before: Before) -> None:
        self._engine, self._before = engine, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def turn(self, request: TurnRequest, on_event: Callable[[TurnEvent], None]) -> Any:
        await self._before(request.owner)
        return await self._engine.turn(request, on_event)


class Elsewhere(ScriptedModel):
    """A scripted model on such an engine; by default, turns of these agents raise errors first."""

    def __init__(self, answers: Any, **errors: list[Exception]) -> None:
        super().__init__(answers)
        self.errors, self.before = errors, self.fail

    async def fail(self, agent: str) -> None:
        if self.errors.get(agent):
            raise self.errors[agent].pop(0)

    def make_engine(self, states: States) -> Any:
        return _Engine(super().make_engine(states), self.before)


def pair(model: ScriptedModel, **first: Any) -> Workflow:
    """An agent with these settings, and one that reads it."""
    agents = [
        Agent("first", model, prompt="x", **first),
        Agent("second", model, prompt="read: {{ first.text }}"),
    ]
    return Workflow("pair", agents).connect("first", "second")


async def test_a_turn_that_fails_sends_skips_where_the_agent_says_so() -> None:
    """Its readers are skipped, and the report has the error."""
    flow = pair(ScriptedModel({"second": "b"}), on_error="skip")
    result = await flow.arun()
    assert (result["first"].turns, result["second"].turns) == ((), ())
    (failed,) = result.report.failed_turns
    assert (failed.agent, failed.turn, failed.default) == ("first", 1, False)
    assert "agent 'first' failed: the script has no answers" in failed.error
    assert result.to_dict()["failed_turns"][0]["error"] == failed.error


async def test_a_join_goes_on_without_an_agent_that_failed() -> None:
    """A skip of a failed turn counts like any other."""
    model = ScriptedModel({"right": "R", "reader": "done"})
    agents = [Agent("left", model, prompt="x", on_error="skip"), Agent("right", model, prompt="x")]
    prompt = "{{ left.text | default('nobody') }}, {{ right.text }}"
    agents.append(Agent("reader", model, prompt=prompt))
    flow = Workflow("w", agents).connect("left", "reader").connect("right", "reader")
    assert (await flow.arun())["reader"].text == "done"
    assert "nobody, R" in model.prompts["reader"][0]


@pytest.mark.parametrize("share", ["output", "context"])
async def test_a_default_stands_in_for_what_was_not_written(share: str) -> None:
    """Readers get it as the agent's words, whatever they share; outputs have it."""
    model = ScriptedModel({"second": "b"})
    first = Agent("first", model, prompt="asked", on_error="default", default="no answer")
    second = Agent("second", model, prompt="{{ first.text }}" if share == "output" else "read")
    flow = Workflow("w", [first, second], outputs={"it": "{{ first.text }}"})
    result = await flow.connect(first, second, "text", share=share).arun()
    assert result.outputs == {"it": "no answer"}
    assert "no answer" in model.prompts["second"][0]
    assert ("asked" in model.prompts["second"][0]) == (share == "context")
    assert result.report.failed_turns[0].default


async def test_a_default_stands_in_for_an_item() -> None:
    """With for_each the other items are as they were."""
    model = ScriptedModel({"each": ["one"]})
    each = Agent(
        "each", model, prompt="{{ item }}", for_each="inputs.rows", on_error="default", default="-"
    )
    result = await Workflow("w", [each]).arun(rows=["a", "b"])
    assert result["each"].items == ("one", "-")
    assert [item.default for item in result.report.failed_items] == [True]


@pytest.mark.parametrize("rows", [[], ["a", "b"]])
async def test_an_agent_without_items_to_hand_on_sends_skips(rows: list[str]) -> None:
    """Over an empty list, or where every item failed: its readers have nothing to go by."""
    model = ScriptedModel({"last": "a verdict on nothing"})  # no answers for the items
    each = Agent("each", model, prompt="{{ item }}", for_each="inputs.rows", on_error="skip")
    outputs = {"said": "{{ last.text }}", "items": "{{ each.items | length }} {{ each.skipped }}"}
    flow = Workflow("w", [each, Agent("last", model, prompt="judge")], outputs=outputs)
    happened = await events_of(flow.connect("each", "last"), rows=rows)
    finished = happened[-1]
    assert isinstance(finished, RunFinished)
    assert finished.outputs == {"said": "", "items": f"{len(rows)} True"}
    assert finished.report.empty_turns == (EmptyTurn(agent="each", turn=1, items=len(rows)),)
    reasons = {one.agent: one.reason for one in happened if isinstance(one, AgentSkipped)}
    why = "all of its items failed" if rows else "its list is empty"
    assert reasons == {"each": why, "last": ""}


async def test_an_agent_goes_on_after_a_turn_that_failed() -> None:
    """A loop asks again: the turn begins anew, with the messages that it had."""
    script = {"draft": ["one", "three"], "critic": ["again", "again", "fine"]}
    model = Elsewhere(script)
    draft = Agent("draft", model, prompt="write", max_turns=3, on_error="default", default="two")
    critic = Agent("critic", model, prompt="{{ draft.text }}", memory="turn")
    flow = Workflow("w", [draft, critic]).connect(draft, critic)
    flow.connect(critic, draft, loop=True)

    def answer(agent: str, turn: int, prompt: str) -> str:
        if agent == "critic" and turn == 1:
            model.errors["draft"] = [ValueError("broken")]
        return script[agent].pop(0)

    model.answers = answer
    result = await flow.arun()
    assert result["draft"].turns == ("one", "two", "three")
    assert "two" in model.prompts["draft"][-1]


async def test_an_error_that_may_pass_is_tried_again() -> None:
    """The turn's own words are those of the try that went well, and the report counts tries."""
    errors: list[Exception] = [ConnectionError("gone"), TimeoutError("late")]
    flow = pair(Elsewhere({"first": "a", "second": "b"}, first=errors), retry=AT_ONCE)
    events = await events_of(flow)
    retried = [event for event in events if isinstance(event, TurnRetried)]
    assert [(event.agent, event.attempt) for event in retried] == [("first", 1), ("first", 2)]
    assert "agent 'first' failed: ConnectionError: gone" in retried[0].error
    (end, _) = [event for event in events if isinstance(event, TurnFinished)]
    assert (end.text, end.report.attempts) == ("a", 3)


@pytest.mark.parametrize(
    ("retry", "error", "tries"),
    [
        (AT_ONCE, ConnectionError("x"), 3),
        (AT_ONCE, ValueError("x"), 1),
        ({**AT_ONCE, "on": "any"}, ValueError("x"), 3),
        ({**AT_ONCE, "on": "any"}, InputError("x"), 1),
        ({**AT_ONCE, "on": ["memory"]}, MemoryError("x"), 3),
        ({**AT_ONCE, "on": ["memory"]}, ConnectionError("x"), 1),
        (None, ConnectionError("x"), 1),
    ],
)
async def test_only_errors_that_may_pass_are_tried_again(
    retry: Any, error: Exception, tries: int
) -> None:
    """What a person wrote stays wrong; the last error is the run's."""
    model = Elsewhere({"first": "a", "second": "b"}, first=[error] * 3)
    with pytest.raises(AgentError) as caught:
        await pair(model, retry=retry).arun()
    assert caught.value.__cause__ is error
    assert len(model.errors["first"]) == 3 - tries


async def test_tries_are_told_by_no_hook_of_stamina() -> None:
    """Runs have events and a log; a program's own retries are told as before."""
    told: list[str] = []
    set_on_retry_hooks([lambda details: told.append(details.name)])
    try:
        _quiet_stamina.cache_clear()
        model = Elsewhere({"first": "a", "second": "b"}, first=[ConnectionError("x")])
        await pair(model, retry=AT_ONCE).arun()
        assert not told

        @stamina.retry(on=ValueError, attempts=2, wait_initial=0, wait_max=0, wait_jitter=0)
        def mine() -> None:
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            mine()
        assert len(told) == 1
    finally:
        set_on_retry_hooks(None)
        _quiet_stamina.cache_clear()


async def test_a_turn_that_fails_in_every_try_may_be_skipped() -> None:
    """`on_error` is about the last of them."""
    model = Elsewhere({}, first=[ConnectionError("x")] * 2)
    flow = pair(model, on_error="skip", retry={"attempts": 2, "wait": 0})
    (failed,) = [event for event in await events_of(flow) if isinstance(event, TurnFailed)]
    assert (failed.agent, failed.attempts, failed.default) == ("first", 2, False)


async def test_a_cancel_is_not_tried_again() -> None:
    """It ends the wait before the next try as well."""
    model = Elsewhere({"first": "a"}, first=[ConnectionError("x")] * 9)
    flow = pair(model, retry={"attempts": 9, "wait": 60, "on": "any"})
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(flow.arun)
        while len(model.errors["first"]) == 9:  # noqa: ASYNC110 - what is waited for has no event
            await anyio.sleep(0.01)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert len(model.errors["first"]) == 8


async def test_an_engine_that_falls_silent_ends_the_run() -> None:
    """`idle_timeout` bounds the time from one event to the next."""
    model = Elsewhere({})
    model.before = _for_ever
    with pytest.raises(RunTimeout, match="agent 'first' was idle for longer") as caught:
        await pair(model, idle_timeout=0.05).arun()
    assert caught.value.agent == "first"


async def _for_ever(agent: str) -> None:
    await anyio.sleep_forever()


async def test_a_turn_that_goes_on_is_not_idle() -> None:
    """Each event counts; waiting for a device of this process does not."""
    flow = pair(ScriptedModel({"first": "a b c", "second": "b"}), idle_timeout=30.0)
    assert (await flow.arun())["first"].text == "a b c"


async def test_a_join_of_the_first_messages_drops_the_later_ones() -> None:
    """Two of three start it; the third is in the report and in the events."""
    model = Elsewhere({"a": "A", "b": "B", "c": "C", "reader": "done"})
    begun = anyio.Event()

    async def before(agent: str) -> None:
        if agent == "reader":
            begun.set()
        elif agent == "c":
            await begun.wait()

    model.before = before
    agents = [Agent(name, model, prompt="x") for name in "abc"]
    reader = Agent("reader", model, prompt="go", join={"first": 2})
    flow = Workflow("w", [*agents, reader])
    for agent in agents:
        flow.connect(agent, reader, "text")
    events = await events_of(flow)
    dropped = [event for event in events if isinstance(event, MessageDropped)]
    assert dropped == [MessageDropped("c", "reader")]
    assert "A" in model.prompts["reader"][0] and "C" not in model.prompts["reader"][0]


def test_a_join_of_more_messages_than_edges_is_refused() -> None:
    """It could never start with so many."""
    model = ScriptedModel({})
    agents = [Agent("a", model, prompt="x"), Agent("b", model, prompt="x", join={"first": 2})]
    (problem,) = validate(Workflow("w", agents).connect("a", "b").spec)
    assert problem.where == "agents.b.join"
