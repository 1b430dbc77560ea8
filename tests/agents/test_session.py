"""Runs of a session: each finds what the ones before have computed, and says so."""

import threading
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from flows import sound

from unspoken.agents import Agent, LocalModel, RunResult, Session, Workflow
from unspoken.agents.events import RunFinished
from unspoken.agents.testing import tiny_model
from unspoken.channels import InputError

DOCUMENT = "the key of the cache is in the document that the reader was for\n" * 4
QUESTIONS = ("who is the reader?", "what of the cache?")
FEW = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


def asker(model: LocalModel, name: str = "solver") -> Workflow:
    """An agent that reads a document and then a question, all as its own words."""
    prompt = "{{ inputs.document }}\nQuestion: {{ inputs.question }}"
    return Workflow(f"ask-{name}", [Agent(name, model, prompt=prompt, generate=FEW)])


def ask(flow: Workflow, number: int, **more: Any) -> RunResult:
    return flow.run(document=DOCUMENT, question=QUESTIONS[number], **more)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_second_question_begins_where_the_first_did(family: Any) -> None:
    """The document is computed once in a session, and each answer is the one without a session."""
    flow = asker(tiny_model(family=family))
    plain = [ask(flow, number) for number in range(2)]
    with Session() as session:
        results = [ask(flow, number, session=session) for number in range(2)]
        statistics = session.statistics()
    assert [r.outputs for r in results] == [r.outputs for r in plain]
    (first,), (second,) = (sound(r.report).agents["solver"] for r in results)
    document = len(flow.models["model"].text.encode_words(DOCUMENT))
    assert first.reused_tokens == 0 and second.reused_tokens >= document
    assert second.prefilled_tokens < 40
    assert (statistics.prefix_hits, statistics.prefix_misses) == (1, 1)
    assert statistics.prefix_tokens == second.reused_tokens
    assert statistics.tickets == 0 < statistics.bytes_cached == statistics.bytes_held


def test_agents_of_other_workflows_share_a_session(model: LocalModel) -> None:
    """What counts is the model and the tokens, not who asks."""
    with Session() as session:
        ask(asker(model, "first"), 0, session=session)
        result = ask(asker(model, "second"), 1, session=session)
    assert result.report.agents["second"][0].reused_tokens > 60


def test_another_model_finds_nothing(model: LocalModel) -> None:
    """The weights tell whose states serve."""
    with Session() as session:
        ask(asker(model), 0, session=session)
        result = ask(asker(tiny_model(1)), 1, session=session)
    assert result.report.agents["solver"][0].reused_tokens == 0


def test_a_text_edge_tells_what_had_a_state(model: LocalModel) -> None:
    """It stays a text edge. Its tokens that an earlier run has computed count as reused."""
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    solver = Agent("solver", model, prompt="{{ inputs.question }}", generate=FEW)
    flow = Workflow("text", [reader, solver]).connect(reader, solver, "text")
    plain = ask(flow, 1)
    with Session() as session:
        ask(flow, 0, session=session)
        result = ask(flow, 1, session=session)
    (edge,), (turn,) = result.report.edges, result.report.agents["solver"]
    assert result.outputs == plain.outputs and plain.report.edges[0].reused == 0
    assert (edge.channel, edge.mode, edge.exact) == ("text", "text", True)
    assert edge.reused == edge.tokens <= turn.reused_tokens
    assert plain.report.edges[0].reason in edge.reason != plain.report.edges[0].reason


def test_approximate_states_are_not_found(model: LocalModel) -> None:
    """A spliced context is nobody's beginning: only the exact states of the run serve."""
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    solver = Agent(
        "solver", model, prompt="{{ inputs.question }}", system="Be brief.", generate=FEW
    )
    flow = Workflow("splice", [reader, solver]).connect(reader, solver, "same_model_cache")
    with Session() as session:
        first, second = (ask(flow, 0, session=session) for _ in range(2))
        held = session.statistics().states
    assert [r.report.edges[0].mode for r in (first, second)] == ["splice", "splice"]
    assert second.report.agents["reader"][0].reused_tokens > 60
    assert second.outputs == first.outputs
    assert len(held) == 1  # the reader's


def test_the_budget_frees_what_is_unused_longest(model: LocalModel) -> None:
    """A cache of earlier turns never takes more than the session may."""
    flow = asker(model)
    with Session() as session:
        ask(flow, 0, session=session)
        one = session.statistics().bytes_held
    with Session(memory=5 * one) as session:
        for number in range(8):
            flow.run(document=f"{number} {DOCUMENT}", question="who?", session=session)
            assert session.statistics().bytes_held <= 5 * one
        again = flow.run(document=f"7 {DOCUMENT}", question="when?", session=session)
        gone = flow.run(document=f"0 {DOCUMENT}", question="when?", session=session)
    assert again.report.agents["solver"][0].reused_tokens > 60
    assert gone.report.agents["solver"][0].reused_tokens == 0


def test_a_closed_session_is_refused(model: LocalModel) -> None:
    """And it holds nothing any more."""
    session = Session()
    with session:
        ask(asker(model), 0, session=session)
    session.close()
    assert session.statistics().bytes_held == 0 and not session.statistics().states
    with pytest.raises(InputError, match="the session is closed"):
        ask(asker(model), 0, session=session)


@pytest.mark.parametrize("memory", ["much", "0", 0, -5, True, "2 XB"])
def test_a_memory_must_be_a_size(memory: Any) -> None:
    with pytest.raises(InputError, match="memory is"):
        Session(memory=memory)


def test_an_input_may_be_called_session(model: LocalModel) -> None:
    """What is no session is an input of that name."""
    agent = Agent("solver", model, prompt="{{ inputs.session }}", generate=FEW)
    result = Workflow("w", [agent]).run(session="the morning one")
    assert result.report.agents["solver"][0].prompt_tokens > 10


@pytest.mark.anyio
async def test_runs_of_a_session_go_on_at_the_same_time(model: LocalModel) -> None:
    """On one event loop, as runs and as streams."""
    flow = asker(model)
    plain = [ask(flow, number).outputs for number in range(2)]
    outputs: dict[int, Any] = {}

    async def follow(number: int, session: Session) -> None:
        stream = flow.stream(document=DOCUMENT, question=QUESTIONS[number], session=session)
        async with aclosing(stream) as events:
            async for event in events:
                if isinstance(event, RunFinished):
                    outputs[number] = event.outputs

    with Session() as session:
        async with anyio.create_task_group() as tasks:
            for number in range(2):
                tasks.start_soon(follow, number, session)
        result = await flow.arun(document=DOCUMENT, question=QUESTIONS[0], session=session)
    assert [outputs[number] for number in range(2)] == plain
    assert result.outputs == plain[0] and result.report.agents["solver"][0].reused_tokens > 60


def test_threads_share_a_session(model: LocalModel) -> None:
    """Each with a run of its own; nothing is held for them afterwards."""
    flow = asker(model)
    plain = [ask(flow, number).outputs for number in range(2)]
    outputs: dict[int, Any] = {}

    def work(number: int, session: Session) -> None:
        outputs[number] = ask(flow, number % 2, session=session).outputs

    with Session() as session:
        threads = [threading.Thread(target=work, args=(n, session)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert session.statistics().tickets == 0
        assert session.statistics().bytes_leased == 0
    assert outputs == {number: plain[number % 2] for number in range(4)}


@pytest.mark.anyio
async def test_a_run_that_holds_up_another_of_its_session_is_refused(model: LocalModel) -> None:
    """It may need memory that the other cannot give back while the event loop stands still."""
    flow = asker(model)
    with Session() as session:
        stream = flow.stream(document=DOCUMENT, question=QUESTIONS[0], session=session)
        async with aclosing(stream) as events:
            await anext(events)
            with pytest.raises(InputError, match="another run of the session"):
                ask(flow, 1, session=session)
            assert ask(flow, 1).outputs
        assert ask(flow, 1, session=session).outputs
