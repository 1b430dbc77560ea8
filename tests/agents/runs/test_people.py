"""People who approve, edit and answer: a run waits for them, and goes on."""

from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from unspoken.agents import Agent, Workflow
from unspoken.agents.events import (
    QuestionAsked,
    RunFinished,
    RunPaused,
    TokenWritten,
    TurnFinished,
    replay,
)
from unspoken.agents.runs import RunStore
from unspoken.agents.runs.records import Question
from unspoken.agents.testing import ScriptedModel, tiny_model
from unspoken.channels import InputError, RunError, RunWaiting, WorkflowError

FEW = {"max_new_tokens": 16}

Ask = Literal["approve", "edit", "answer"]


@pytest.fixture
def script() -> ScriptedModel:
    return ScriptedModel({"writer": "a draft", "other": "more", "reader": "read"})


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path)


def flow(model: Any, ask: Ask | None = None, edge: Ask | None = None) -> Workflow:
    """A writer and who reads it; a person has a say at the one or in between."""
    writer = Agent("writer", model, prompt="who is it?", ask=ask, generate=FEW)
    reader = Agent("reader", model, prompt="{{ writer.text }}", generate=FEW)
    return Workflow("people", [writer, reader]).connect(writer, reader, ask=edge)


def paused(flow: Workflow, store: RunStore) -> Question:
    """What a run that has begun asks."""
    with pytest.raises(RunWaiting) as waiting:
        flow.run(run_id="a", store=store)
    (question,) = waiting.value.questions
    assert store.get("a").status == "paused" and store.get("a").open == (question,)
    assert isinstance(question, Question)
    return question


@pytest.mark.parametrize(
    ("ask", "shown", "answer", "read"),
    [
        ("approve", "a draft", True, "a draft"),
        ("edit", "a draft", "a better draft", "a better draft"),
        ("answer", "who is it?", "it is me", "it is me"),
    ],
)
def test_an_agents_turn_waits_for_a_person(
    script: ScriptedModel, store: RunStore, ask: Ask, shown: str, answer: Any, read: str
) -> None:
    """The run pauses; another workflow object goes on with it, and nothing is asked twice."""
    question = paused(flow(script, ask), store)
    assert (question.kind, question.text, question.id) == (ask, shown, "writer.1")
    result = flow(script, ask).resume("a", answer, store=store)
    assert result["writer"].text == read and read in script.prompts["reader"][0]
    asked = [prompt for prompt in script.prompts["writer"] if prompt.endswith("assistant\n")]
    assert len(asked) == (ask != "answer")
    assert flow(script, ask).run(run_id="a", store=store).outputs == result.outputs


@pytest.mark.parametrize(("ask", "answer"), [("approve", "yes"), ("edit", "my words")])
def test_a_message_waits_for_a_person(
    script: ScriptedModel, store: RunStore, ask: Ask, answer: str
) -> None:
    """The reader alone gets other words; the writer's own stay."""
    question = paused(flow(script, edge=ask), store)
    assert (question.receiver, question.text) == ("reader", "a draft")
    result = flow(script, edge=ask).resume("a", {question.id: answer}, store=store)
    read = "a draft" if ask == "approve" else answer
    assert result["writer"].text == "a draft" and read in script.prompts["reader"][0]


def test_a_message_that_is_not_approved_is_a_skip(script: ScriptedModel, store: RunStore) -> None:
    """The reader is skipped, as where a condition is false."""
    result = flow(script, edge="approve").run(store=store, on_question=lambda question: False)
    assert result.report.agents["reader"] == () and result["writer"].text == "a draft"


def test_a_turn_that_is_not_approved_fails(script: ScriptedModel, store: RunStore) -> None:
    """The run fails, with what was written in its partial result."""
    with pytest.raises(RunError, match="a person refused what 'writer' wrote") as caught:
        flow(script, "approve").run(run_id="a", store=store, on_question=lambda question: "no")
    assert not isinstance(caught.value, RunWaiting) and store.get("a").status == "failed"


def test_edited_words_are_read_as_if_the_agent_had_written_them(store: RunStore) -> None:
    """On a cache edge too: their state is computed, and carried as any other."""
    model = tiny_model()
    edited = flow(model, "edit").run(store=store, on_question=lambda question: "who is it")
    answered = flow(model, "answer").run(store=store, on_question=lambda question: "who is it")
    assert edited.outputs == answered.outputs
    assert edited.report.edges[0].channel == "same_model_cache"
    assert edited.report.edges[0].reused > 0


@pytest.mark.event_loops
def test_a_stream_tells_of_the_question_and_ends(
    script: ScriptedModel, store: RunStore, anyio_backend: str
) -> None:
    """Another branch goes on meanwhile; the last event says what the run waits for."""

    async def follow() -> list[Any]:
        writer = Agent("writer", script, prompt="who is it?", ask="edit", generate=FEW)
        other = Agent("other", script, prompt="first", generate=FEW)
        reader = Agent("reader", script, prompt="{{ other.text }}", generate=FEW)
        asks = Workflow("people", [writer, other, reader]).connect(other, reader)
        async with aclosing(asks.stream(store=store, run_id=anyio_backend)) as events:
            return [event async for event in events]

    *events, last = anyio.run(follow, backend=anyio_backend)
    (asked,) = [event for event in events if isinstance(event, QuestionAsked)]
    assert isinstance(last, RunPaused)
    ended = [event.agent for event in events if isinstance(event, TurnFinished)]
    assert ended.index("other") < ended.index("reader")
    assert last.questions == (asked.question,) and last.run_id == anyio_backend


@pytest.mark.event_loops
def test_an_answer_may_come_while_the_run_goes_on(
    script: ScriptedModel, store: RunStore, anyio_backend: str
) -> None:
    """Who follows the run answers by way of a queue, or of whatever else is awaited."""

    async def follow() -> list[Any]:
        send, receive = anyio.create_memory_object_stream[str](1)

        async def person(question: Question) -> str:
            await send.send(question.text.upper())
            return await receive.receive()

        with send, receive:
            asks = flow(script, "edit")
            async with aclosing(asks.stream(store=store, on_question=person)) as events:
                return [event async for event in events]

    assert isinstance(anyio.run(follow, backend=anyio_backend)[-1], RunFinished)
    assert "A DRAFT" in script.prompts["reader"][-1]


@pytest.mark.parametrize(
    ("answer", "found"),
    [("maybe", "asks for approval"), ({"reader.1": True}, "asks no question 'reader.1'")],
)
def test_an_answer_must_fit(
    script: ScriptedModel, store: RunStore, answer: Any, found: str
) -> None:
    """Neither is kept: the run still waits."""
    question = paused(flow(script, "approve"), store)
    with pytest.raises(InputError, match=found):
        flow(script, "approve").resume("a", answer, store=store)
    assert store.get("a").open == (question,)


def test_two_questions_want_an_answer_each(store: RunStore) -> None:
    """Branches pause by themselves; one answer does not do for both."""
    script = ScriptedModel({})
    asks = [Agent(name, script, prompt=f"{name}?", ask="answer") for name in ("left", "right")]
    both = Workflow("both", asks)
    with pytest.raises(RunWaiting):
        both.run(run_id="a", store=store)
    with pytest.raises(InputError, match="asks 2 things"):
        both.resume("a", "one", store=store)
    with pytest.raises(RunWaiting, match="right"):
        both.resume("a", {"left.1": "one"}, store=store)
    assert both.resume("a", "two", store=store).outputs == {"left": "one", "right": "two"}


def test_ask_wants_words(script: ScriptedModel) -> None:
    """An agent that writes nothing is refused."""
    with pytest.raises(WorkflowError, match="ask stands at an agent with"):
        Agent("writer", script, prompt="who is it?", ask="edit", generate=None)


def test_each_item_asks_for_itself(store: RunStore) -> None:
    """All items are asked about at once, and each answer counts for its own item."""
    script = ScriptedModel(lambda agent, turn, prompt: f"{agent} read {prompt.split('of ')[1][0]}")
    writer = Agent(
        "writer", script, prompt="of {{ item }}", ask="edit", for_each="inputs.rows", generate=FEW
    )
    items = Workflow("items", [writer])
    with pytest.raises(RunWaiting) as waiting:
        items.run(run_id="a", store=store, rows=["1", "2"])
    texts = {question.id: question.text for question in waiting.value.questions}
    assert texts == {"writer.1.item0": "writer read 1", "writer.1.item1": "writer read 2"}
    with pytest.raises(RunWaiting):
        items.resume("a", {"writer.1.item1": "mine"}, store=store)
    result = items.resume("a", "first", store=store)
    assert result["writer"].items == ("first", "mine")


def test_a_no_can_be_taken_back(script: ScriptedModel, store: RunStore) -> None:
    """The turn that a person refused goes on with the words that it had."""
    people = flow(script, "approve")
    paused(people, store)
    with pytest.raises(RunError, match="refused"):
        people.resume("a", False, store=store)
    result = people.resume("a", True, again=True, store=store)
    assert (result["writer"].text, result["reader"].text) == ("a draft", "read")


def test_what_followed_an_answer_is_taken_back_with_it(
    script: ScriptedModel, store: RunStore
) -> None:
    """After a no on an edge its reader was skipped; after a yes it reads the message."""
    people = flow(script, edge="approve")
    question = paused(people, store)
    assert "reader" not in people.resume("a", False, store=store).agents
    result = people.resume("a", {question.id: True}, again=True, store=store)
    assert result["reader"].text == "read"


def test_events_are_told_once_more(script: ScriptedModel, store: RunStore) -> None:
    """Of a run that paused and went on, every event once, in order, words by the turn."""
    people = flow(script, edge="approve")
    paused(people, store)
    people.resume("a", True, store=store)
    told = replay("a", store)
    kinds = [type(event).__name__ for event in told]
    assert kinds == [
        *("RunStarted", "TurnStarted", "TokenWritten", "TurnFinished", "QuestionAsked"),
        *("RunPaused", "TurnStarted", "MessageCarried", "TokenWritten", "TurnFinished"),
        "RunFinished",
    ]
    words = [event.text for event in told if isinstance(event, TokenWritten)]
    assert words == ["a draft", "read"]
    assert all(event.run_id == "a" and event.at for event in told)


def test_edited_words_are_data_to_their_reader(store: RunStore) -> None:
    """As the agent's own are."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    model = ScriptedModel({"writer": '{"n": 1}', "reader": "read"})
    generate = {"schema": schema, "max_new_tokens": 24}
    writer = Agent("writer", model, prompt="go", generate=generate)
    reader = Agent("reader", model, prompt="it is {{ writer.data.n + 1 }}", generate=FEW)
    edited = Workflow("people", [writer, reader]).connect(writer, reader, ask="edit")
    paused(edited, store)
    edited.resume("a", '{"n": 41}', store=store)
    assert "it is 42" in model.prompts["reader"][-1]
