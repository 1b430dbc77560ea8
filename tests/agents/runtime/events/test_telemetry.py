"""Spans of a run: who is inside of whom, what they say, and none without an SDK."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from unspoken.agents import Agent, Workflow
from unspoken.agents.runs import RunStore
from unspoken.agents.runtime.telemetry import Telemetry, executing_tool
from unspoken.agents.testing import ScriptedModel
from unspoken.channels import AgentError, RunWaiting

pytestmark = [pytest.mark.anyio, pytest.mark.event_loops]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What an SDK records; it is set up for this test alone."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


def pair(answers: dict[str, str], **second: Any) -> Workflow:
    model = ScriptedModel(answers)
    agents = [Agent("a", model, prompt="go"), Agent("b", model, prompt="on", **second)]
    return Workflow("pair", agents).connect("a", "b", "same_model_cache")


def inside(spans: InMemorySpanExporter) -> dict[str, str]:
    """By the name of a span, the name of the one that it is in."""
    finished = spans.get_finished_spans()
    names = {span.context.span_id: span.name for span in finished if span.context}
    return {
        span.name: names.get(span.parent.span_id, "") if span.parent else "" for span in finished
    }


def named(spans: InMemorySpanExporter, name: str) -> ReadableSpan:
    (span,) = [span for span in spans.get_finished_spans() if span.name == name]
    return span


async def test_a_run_its_turns_and_their_chats_are_spans(spans: InMemorySpanExporter) -> None:
    """Turns are in the run, though one starts the other; chats are in their turns."""
    result = await pair({"a": "x", "b": "y"}, generate={"temperature": 0.5, "seed": 3}).arun()
    parents = inside(spans)
    assert parents["invoke_workflow pair"] == ""
    assert parents["invoke_agent a"] == parents["invoke_agent b"] == "invoke_workflow pair"
    chats = [span for span in spans.get_finished_spans() if span.name == "chat"]
    (turn,) = result.report.agents["b"]
    told = dict(chats[-1].attributes or {})
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.seed"] == 3 and told["gen_ai.request.temperature"] == 0.5
    assert told["gen_ai.usage.input_tokens"] == turn.prompt_tokens
    assert told["gen_ai.usage.cache_read.input_tokens"] == turn.reused_tokens > 0
    assert told["gen_ai.response.finish_reasons"] == (turn.finish,)


async def test_a_carry_is_a_span_with_its_bytes_mode_and_exactness(
    spans: InMemorySpanExporter,
) -> None:
    """It is in the chat of its receiver, and as long as the report says."""
    result = await pair({"a": "x", "b": "y"}).arun()
    (edge,) = result.report.edges
    span = named(spans, "carry a -> b")
    told = dict(span.attributes or {})
    assert told["unspoken.carry.bytes"] == edge.bytes > 0
    assert (told["unspoken.carry.mode"], told["unspoken.carry.exact"]) == (edge.mode, edge.exact)
    assert inside(spans)["carry a -> b"] == "chat"
    assert (span.end_time or 0) - (span.start_time or 0) == int(edge.seconds * 1e9)


async def test_a_turn_that_fails_has_its_error(spans: InMemorySpanExporter) -> None:
    """The run and the turn have the status and the type of the error."""
    with pytest.raises(AgentError):
        await pair({"a": "x"}).arun()
    for name in ("invoke_agent b", "invoke_workflow pair"):
        span = named(spans, name)
        assert span.status.status_code is trace.StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == "AgentError"
        assert "agent 'b'" in (span.status.description or "")
    assert named(spans, "invoke_agent a").status.status_code is trace.StatusCode.UNSET


async def test_a_turn_from_the_store_counts_no_tokens(
    spans: InMemorySpanExporter, tmp_path: Path
) -> None:
    """Its tokens were counted when it was computed; the run says that it waits for a person."""
    flow = pair({"a": "x", "b": "y"}, ask="approve")
    for _ in range(2):
        with pytest.raises(RunWaiting):
            await flow.arun(run_id="r", store=RunStore(tmp_path))
    finished = spans.get_finished_spans()
    chats = [dict(span.attributes or {}) for span in finished if span.name == "chat"]
    assert [told.get("unspoken.restored", False) for told in chats] == [False, False, True, True]
    counted = [name for told in chats[2:] for name in told if "usage" in name]
    assert not counted and {told["gen_ai.provider.name"] for told in chats} == {"unspoken"}
    runs = [span for span in finished if span.name == "invoke_workflow pair"]
    assert [(one.attributes or {})["unspoken.stopped_by"] for one in runs] == ["Waiting"] * 2


def fail(word: str) -> str:
    """Fail."""
    raise ValueError(word)


async def test_an_agents_calls_are_spans_of_its_turn(spans: InMemorySpanExporter) -> None:
    """A call that failed says so, though the run goes on."""
    calls = ['{"name": "fail", "arguments": {"word": "no"}}', "done"]
    model = ScriptedModel({"a": calls})
    settings: dict[str, Any] = {"tools": [fail], "generate": {"max_new_tokens": 80}}
    await Workflow("w", [Agent("a", model, prompt="go", **settings)]).arun()
    span = named(spans, "execute_tool fail")
    told = dict(span.attributes or {})
    assert (told["gen_ai.tool.call.id"], told["error.type"]) == ("a.1.1", "ValueError")
    assert span.status.status_code is trace.StatusCode.ERROR
    assert inside(spans)["execute_tool fail"] == "invoke_agent a"


def test_a_call_of_a_tool_is_a_span(spans: InMemorySpanExporter) -> None:
    """By the conventions, inside of whatever goes on."""
    with Telemetry("w", "r").run(), executing_tool("add", "call-1"):
        pass
    told = dict(named(spans, "execute_tool add").attributes or {})
    assert (told["gen_ai.tool.name"], told["gen_ai.tool.call.id"]) == ("add", "call-1")
    assert inside(spans)["execute_tool add"] == "invoke_workflow w"


async def test_a_workflow_inside_is_a_span_of_its_agents_turn(spans: InMemorySpanExporter) -> None:
    """With its own agents' turns inside of it."""
    inner = Agent("inner", workflow=pair({"a": "x", "b": "y"}))
    await Workflow("outer", [inner]).arun()
    parents = inside(spans)
    assert parents["invoke_agent a"] == parents["invoke_agent b"] == "invoke_workflow pair"
    assert parents["invoke_workflow pair"] == "invoke_agent inner"
    assert parents["invoke_agent inner"] == "invoke_workflow outer"


async def test_without_an_sdk_no_span_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run asks for no tracer of the API's own."""
    monkeypatch.setattr(trace.ProxyTracerProvider, "get_tracer", None)
    assert (await pair({"a": "x", "b": "y"}).arun())["b"].text == "y"
