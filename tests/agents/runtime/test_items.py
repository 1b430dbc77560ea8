"""Runs over the items of a list, one of which fails."""

from typing import Any

import pytest

from unspoken.agents import Agent, Workflow
from unspoken.agents.events import ItemFailed
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
    with pytest.raises(AgentError, match="item 3 of 4 failed") as caught:
        bulk().run(rows=ROWS)
    assert isinstance(caught.value.__cause__, ContextLengthError)
    assert caught.value.exit_code == ContextLengthError.exit_code
    partial = caught.value.partial
    assert partial["reader"].items == ("reader 1", "reader 2")
    assert [turn.generated_tokens > 0 for turn in partial.report.agents["reader"]] == [True] * 2


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
    flow = Workflow("w", agents, timeout=0.5).connect("first", "second")
    with pytest.raises(RunTimeout, match="the run took longer") as caught:
        flow.run()
    assert caught.value.partial["first"].text == "words"


def test_on_error_needs_items() -> None:
    """It says nothing of an agent that runs once."""
    with pytest.raises(WorkflowError, match="on_error: skip stands at an agent without for_each"):
        Agent("a", "m", prompt="x", on_error="skip")
