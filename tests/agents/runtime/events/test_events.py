"""Events as plain data: a schema, a round trip, and what every event says of its run."""

import json
import time
from typing import Any

import jsonschema
import pytest
from runs import events_of

from unspoken.agents import Agent, Workflow
from unspoken.agents.events import (
    AgentSkipped,
    Event,
    FallbackTaken,
    ItemFailed,
    LoopEnded,
    MessageDropped,
    PrefillProgress,
    QuestionAsked,
    RunFinished,
    RunPaused,
    RunStarted,
    ToolCalled,
    ToolReturned,
    TurnFailed,
    TurnRetried,
    event_schema,
    from_dict,
    to_dict,
)
from unspoken.agents.runs.records import Question, ToolReport
from unspoken.agents.runtime.event_data import KINDS
from unspoken.agents.testing import ScriptedModel
from unspoken.channels import InputError
from unspoken.channels.base import Fallback

pytestmark = [pytest.mark.anyio]

STAMP: dict[str, Any] = {"run_id": "r", "at": 1.5, "path": ("outer",)}
ASKED = Question(id="a.1", agent="a", turn=1, kind="answer", text="why?")
CALLED = ToolReport(
    id="a.1.1", tool="add", arguments={"a": 1}, result="3", failed=False, seconds=0.1
)
MADE: list[Event] = [
    AgentSkipped("a", **STAMP),
    FallbackTaken("a", "b", "why", Fallback("auto", "why"), 2, **STAMP),
    ItemFailed("a", 1, 2, "broken", True, **STAMP),
    LoopEnded("a", "b", "x", 3, **STAMP),
    MessageDropped("a", "b", **STAMP),
    QuestionAsked(ASKED, **STAMP),
    RunPaused((ASKED,), **STAMP),
    PrefillProgress("a", 1, 2, 3, **STAMP),
    ToolCalled("a", 1, "a.1.1", "add", {"a": 1}, **STAMP),
    ToolReturned("a", 1, CALLED, 2, **STAMP),
    TurnFailed("a", 1, "broken", 2, False, **STAMP),
    TurnRetried("a", 1, 1, "broken", **STAMP),
]


async def run() -> list[Event]:
    """The events of two agents, one of which reads the other."""
    model = ScriptedModel({"a": "x", "b": "y"})
    agents = [Agent(name, model, prompt="go") for name in "ab"]
    return await events_of(
        Workflow("w", agents, outputs={"from": "{{ b.text }}"}).connect("a", "b")
    )


async def test_every_event_goes_to_json_and_back() -> None:
    """What was told and what is made of its JSON are equal, run and time included."""
    told = [*await run(), *MADE]
    assert {type(event) for event in told} == set(KINDS.values())
    for event in told:
        again = from_dict(json.loads(json.dumps(to_dict(event))))
        assert again == event
        assert (again.run_id, again.at, again.path) == (event.run_id, event.at, event.path)


async def test_every_event_keeps_the_schema() -> None:
    """One schema has all of them, and nothing else."""
    schema = jsonschema.Draft202012Validator(event_schema())
    for event in [*await run(), *MADE]:
        schema.validate(to_dict(event))
    assert not schema.is_valid({**to_dict(MADE[0]), "event": "Nothing"})
    assert not schema.is_valid({"event": "AgentSkipped"})


async def test_every_event_names_its_run_and_its_time() -> None:
    """They are the run's own, and times do not go back."""
    before = time.time()
    events = await run()
    assert isinstance(events[0], RunStarted) and isinstance(events[-1], RunFinished)
    assert {event.run_id for event in events} == {events[-1].report.run_id}
    times = [before, *(event.at for event in events)]
    assert times == sorted(times)


@pytest.mark.parametrize(
    "data", [{}, {"event": "AgentSkipped", "version": 2}, {"event": "AgentSkipped", "version": 1}]
)
def test_what_is_no_event_is_refused(data: dict[str, Any]) -> None:
    """Another version's, or one that lacks something."""
    with pytest.raises(InputError):
        from_dict(data)
