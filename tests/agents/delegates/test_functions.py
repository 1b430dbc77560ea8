"""Functions as agents: text in, text out, and no model."""

import threading
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from unspoken.agents import Agent, Workflow
from unspoken.agents.delegates.function import FunctionDelegate
from unspoken.agents.delegates.model import byte_words
from unspoken.agents.events import TokenWritten
from unspoken.agents.testing import ScriptedModel
from unspoken.channels import AgentError, InputError, RunTimeout, WorkflowError

FEW = {"max_new_tokens": 16}


class Verdict(BaseModel):
    words: int
    good: bool


def verdict(text: str) -> Verdict:
    return Verdict(words=len(text.split()), good=True)


def checked(function: Any, **settings: Any) -> Workflow:
    """A writer, a function that is given its words, and who reads what that says."""
    model = ScriptedModel({"writer": "a dräft", "reader": "read"})
    writer = Agent("writer", model, prompt="go", generate=FEW)
    check = Agent("check", function, **settings)
    reader = Agent("reader", model, prompt="so {{ check.text }}", generate=FEW)
    flow = Workflow("checked", [writer, check, reader])
    return flow.connect(writer, check).connect(check, reader)


async def later(text: str) -> str:
    await anyio.lowlevel.checkpoint()
    return text.upper()


@pytest.mark.parametrize("function", [str.upper, later, lambda text: text.upper()])
def test_a_function_answers(function: Any) -> None:
    """Async or not, it reads its messages, and its words are read; both edges are text."""
    flow = checked(function)
    result = flow.run()
    assert result["check"].text == "A DRÄFT"
    assert [(edge.mode, edge.tokens > 0) for edge in result.report.edges] == [("text", True)] * 2
    assert "which has words and no cache" in flow.plan().edges[0].reason


def test_a_prompt_says_what_it_is_given() -> None:
    """As with any agent."""
    flow = checked(str.upper, prompt="is {{ writer.text }} good?")
    assert flow.run()["check"].text == "IS A DRÄFT GOOD?"


def test_what_it_returns_is_data() -> None:
    """A model's instance in Python, and fields in templates and conditions."""
    flow = checked(verdict)
    result = flow.run()
    assert result["check"].data == Verdict(words=2, good=True)
    model = ScriptedModel({"writer": "two words", "reader": "read"})
    writer = Agent("writer", model, prompt="go", generate=FEW)
    reader = Agent("reader", model, prompt="{{ check.data.words + 1 }} of them", generate=FEW)
    data = Workflow("data", [writer, Agent("check", verdict), reader]).connect(writer, "check")
    data.connect("check", reader, when="check.data.good").run()
    assert "3 of them" in model.prompts["reader"][0]


def test_a_failing_function_is_a_failing_turn() -> None:
    """Its error names the agent; it is tried again where the agent says so."""
    tries = []

    def shaky(text: str) -> str:
        tries.append(text)
        if len(tries) < 2:
            raise ConnectionError("no line")
        return "there"

    with pytest.raises(AgentError, match="agent 'check' failed: ConnectionError: no line"):
        checked(shaky).run()
    tries.clear()
    result = checked(shaky, retry={"attempts": 2, "wait": 0.0}).run()
    assert result["check"].text == "there" and result.report.agents["check"][0].attempts == 2


def test_a_function_that_hangs_is_left() -> None:
    """A thread cannot be ended; nobody waits for it."""
    free = threading.Event()
    try:
        with pytest.raises(RunTimeout, match="'check' took longer than its timeout"):
            checked(lambda text: str(free.wait(60)), timeout=0.05).run()
    finally:
        free.set()


def test_a_kept_run_calls_it_once(tmp_path: Path) -> None:
    """Its words are had from the store, as a turn's are."""
    calls = []

    def check(text: str) -> str:
        calls.append(text)
        return "fine"

    flow = checked(check)
    first = flow.run(run_id="a", store=tmp_path)
    again = flow.run(run_id="a", store=tmp_path)
    assert calls == ["a dräft"] and again.outputs == first.outputs


def test_its_words_are_one_event() -> None:
    """Nobody samples them token by token."""

    async def told() -> list[str]:
        events = [event async for event in checked(str.upper).stream()]
        return [e.text for e in events if isinstance(e, TokenWritten) and e.agent == "check"]

    assert anyio.run(told) == ["A DRÄFT"]


def test_it_runs_for_each_item() -> None:
    """And data are then a list."""
    check = Agent("check", verdict, prompt="{{ item }}", for_each="inputs.rows")
    result = Workflow("each", [check]).run(rows=["a", "b c"])
    assert [one.words for one in result["check"].data] == [1, 2]


@pytest.mark.anyio
async def test_it_waits_for_no_thread_of_others() -> None:
    """The store and the engines have threads of their own, which it takes none of."""
    others = anyio.to_thread.current_default_thread_limiter()
    others.total_tokens = 1
    async with others:
        with anyio.fail_after(60):  # where it does wait
            assert await FunctionDelegate(str.upper).answer("a") == "A"


@pytest.mark.parametrize("place", [{"model": str.upper}, {"workflow": checked(str.upper)}])
def test_it_has_no_session(place: Any) -> None:
    """Its memory would be taken for another in silence; a file's is refused too."""
    with pytest.raises(WorkflowError, match="and has memory: session"):
        Agent("a", **place, memory="session")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Verdict, "the model of agent 'a' is the class Verdict"),
        (byte_words()[0].tokenizer, "LocalModel\\(model, tokenizer\\)"),
    ],
)
def test_what_answers_no_words_is_no_function(given: Any, told: str) -> None:
    """A class and a tokenizer can be called too, with something else."""
    with pytest.raises(InputError, match=told):
        Agent("a", given)


def test_a_file_cannot_name_it() -> None:
    """Writing it out says so; an agent without anything says what it lacks."""
    with pytest.raises(InputError, match="'check' is a function"):
        checked(str.upper).to_yaml()
    with pytest.raises(WorkflowError, match="has no model"):
        Agent("check")


def test_what_a_function_sets_is_not_seen_by_others() -> None:
    """Context variables stay in its turn, though one task takes the turns of a chain."""
    tenant = ContextVar("tenant", default="nobody")

    async def set_it(text: str) -> str:
        tenant.set(text)
        return tenant.get()

    async def read(text: str) -> str:
        return tenant.get()

    first, second = Agent("first", set_it, prompt="anna"), Agent("second", read)
    flow = Workflow("apart", [first, second]).connect(first, second)
    result = flow.run()
    assert (result["first"].text, result["second"].text) == ("anna", "nobody")
