"""Inexact hand-overs in a row: what the plan bounds, and what a loop adds during the run."""

from itertools import pairwise
from typing import Any

import pytest
from flows import DOCUMENT, Models

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.spec.edge import MAX_INEXACT
from unspoken.channels.errors import RunError, WorkflowError

SAID = {"max_new_tokens": 8}


def relay(model: LocalModel, length: int, **edge: Any) -> Workflow:
    """Agents with instructions of their own, each of which hands all it knows to the next."""
    first = Agent("a0", model, prompt="{{ inputs.document }}", generate=None)
    rest = [
        Agent(f"a{n}", model, prompt="next", system=f"Agent {n}.", generate=None)
        for n in range(1, length)
    ]
    flow = Workflow("relay", [first, *rest, Agent("end", model, prompt="so?", generate=SAID)])
    for sharer, receiver in pairwise(flow.spec.agents):
        flow.connect(sharer, receiver, share="context", **edge)
    return flow


def ping_pong(model: LocalModel, **edge: Any) -> Workflow:
    """Two agents with instructions of their own that answer each other five times."""
    ask = Agent(
        "ask", model, prompt="{{ inputs.document }}", system="Ask.", generate=SAID, max_turns=3
    )
    reply = Agent("reply", model, prompt="reply", system="Reply.", generate=SAID)
    edge = {"repair": {"sink": 0}, **edge}
    flow = Workflow("talk", [ask, reply]).connect("ask", "reply", **edge)
    return flow.connect("reply", "ask", loop=True, **edge)


def test_the_plan_stops_a_row_of_splices(models: Models) -> None:
    """After as many as the edges allow comes text, and then they begin anew; the run agrees."""
    flow = relay(models["chatml"], 5, max_inexact=2)
    plan = flow.plan()
    assert [edge.mode for edge in plan.edges] == ["splice", "splice", "text", "splice", "splice"]
    assert [edge.hops for edge in plan.edges] == [1, 2, 0, 1, 2]
    assert "2 inexact hand-overs in a row" in plan.edges[2].reason
    report = flow.run(document=DOCUMENT).report
    assert [edge.mode for edge in report.edges] == [edge.mode for edge in plan.edges]
    assert report.edges[2].reason.startswith("2 inexact hand-overs in a row")
    assert report.fallbacks == ()


def test_a_continuation_adds_nothing(models: Models) -> None:
    """It may follow as many as it likes; what was measured is what is allowed by default."""
    free = relay(models["chatml"], MAX_INEXACT + 1).plan()
    assert [edge.mode for edge in free.edges[-2:]] == ["splice", "text"]
    model = models["chatml"]
    read = Agent("read", model, prompt="{{ inputs.document }}", generate=None)
    agents = [Agent(name, model, prompt="so?", system="Be short.") for name in ("a", "b")]
    flow = Workflow("on", [read, *agents]).connect("read", "a", share="context", max_inexact=1)
    flow.connect("a", "b", share="context", max_inexact=1)
    planned = [(edge.mode, edge.hops) for edge in flow.plan().edges]
    assert planned == [("splice", 1), ("continuation", 1)]


def test_none_allowed_goes_on_from_no_inexact_state(models: Models) -> None:
    """With 0, a continuation of a spliced context goes by text too, as planned and as run."""
    model = models["chatml"]
    read = Agent("read", model, prompt="{{ inputs.document }}", generate=None)
    agents = [Agent(name, model, prompt="so?", system="Be short.") for name in ("a", "b")]
    flow = Workflow("on", [read, *agents]).connect("read", "a", share="context")
    flow.connect("a", "b", share="context", max_inexact=0)
    assert [edge.mode for edge in flow.plan().edges] == ["splice", "text"]
    report = flow.run(document=DOCUMENT).report
    assert [(edge.mode, edge.exact) for edge in report.edges] == [("splice", False), ("text", True)]


def test_an_edge_that_must_not_fall_back_is_refused(models: Models) -> None:
    """Text in its place would be a fallback."""
    with pytest.raises(WorkflowError, match="1 inexact hand-over in a row"):
        relay(models["chatml"], 2, max_inexact=1, fallback="error").plan()


def test_a_loop_is_bounded_during_the_run(models: Models) -> None:
    """The states know what they came through; each hand-over says how it was made."""
    flow = ping_pong(models["chatml"], max_inexact=2)
    assert [edge.mode for edge in flow.plan().edges] == ["splice", "splice"]
    edges = flow.run(document=DOCUMENT).report.edges
    assert [edge.mode for edge in edges][:3] == ["splice", "splice", "text"]
    assert edges[2].fallback is not None
    assert edges[2].fallback.cause == "2 inexact hand-overs in a row"
    with pytest.raises(RunError, match="2 inexact hand-overs in a row"):
        ping_pong(models["chatml"], max_inexact=2, fallback="error").run(document=DOCUMENT)
