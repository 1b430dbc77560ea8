"""One loaded model for many users: on one event loop, in threads, with some who go away."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest

from unspoken.agents import Agent, LocalModel, Session, Workflow
from unspoken.agents.events import TokenWritten
from unspoken.agents.testing import tiny_model

QUESTIONS = [f"question {number}" for number in range(6)]


@pytest.fixture(scope="module")
def flow() -> Workflow:
    model: LocalModel = tiny_model()
    generate = {"max_new_tokens": 6}
    reader = Agent("reader", model, prompt="who is it", generate=None)
    solver = Agent("solver", model, prompt="{{ inputs.question }}", generate=generate)
    return Workflow("shared", [reader, solver]).connect(reader, solver)


@pytest.fixture(scope="module")
def alone(flow: Workflow) -> list[str]:
    """What each user gets who is the only one."""
    return [flow.run(question=question)["solver"].text for question in QUESTIONS]


@pytest.mark.anyio
@pytest.mark.event_loops
async def test_many_users_of_a_web_handler_get_what_each_gets_alone(
    flow: Workflow, alone: list[str]
) -> None:
    """Runs side by side share the model and nothing else; one that is cancelled leaves no trace."""
    answers: dict[int, str] = {}

    async def handle(number: int, question: str) -> None:
        answers[number] = (await flow.arun(question=question))["solver"].text

    async with anyio.create_task_group() as users, anyio.create_task_group() as leaving:
        for number, question in enumerate(QUESTIONS):
            users.start_soon(handle, number, question)
            leaving.start_soon(handle, -1 - number, question)
        await anyio.lowlevel.checkpoint()
        leaving.cancel_scope.cancel()
    assert [answers[number] for number in range(len(QUESTIONS))] == alone


def test_runs_in_threads_share_a_model(flow: Workflow, alone: list[str]) -> None:
    """Each thread has an event loop of its own."""

    def ask(question: str) -> Any:
        return flow.run(question=question)["solver"].text

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, QUESTIONS)) == alone


@pytest.fixture(scope="module")
def chat() -> Workflow:
    generate = {"max_new_tokens": 6}
    prompt = "{{ inputs.words }}"
    talker = Agent("talker", tiny_model(), prompt=prompt, memory="session", generate=generate)
    return Workflow("chat", [talker])


def conversation(chat: Workflow, user: str) -> list[str]:
    """What a user hears in two runs who is the only one."""
    with Session() as session:
        said = [chat.run(words=f"{user} {n}", session=session) for n in range(2)]
    return [one["talker"].text for one in said]


@pytest.mark.anyio
@pytest.mark.event_loops
async def test_each_user_of_a_streaming_handler_has_a_conversation(
    chat: Workflow, tmp_path: Path
) -> None:
    """One model, one memory, a session for each; who goes away leaves theirs as it was."""
    names = ["anna", "berta", "clara"]
    heard: dict[str, list[str]] = {name: [] for name in names}

    async def handle(users: Session, name: str, words: str) -> None:
        parts: list[str] = []
        async for event in chat.stream(words=words, session=users.named(name)):
            if isinstance(event, TokenWritten):
                parts.append(event.text)
        heard[name].append("".join(parts))

    async def go_away(users: Session, name: str) -> None:
        async for event in chat.stream(words="bye", session=users.named(name)):
            if isinstance(event, TokenWritten):
                return

    with Session(store=tmp_path) as users:
        for number in range(2):
            async with anyio.create_task_group() as requests:
                for name in names:
                    requests.start_soon(handle, users, name, f"{name} {number}")
                requests.start_soon(go_away, users, f"gone {number}")
        for number in range(2):
            assert users.named(f"gone {number}").conversations() == ()
        assert users.statistics().bytes_leased == 0
    assert heard == {name: conversation(chat, name) for name in names}


def test_threads_have_a_conversation_each_on_one_model(chat: Workflow) -> None:
    """Each thread has an event loop of its own; the model and the memory are the same."""
    names = [f"user {number}" for number in range(4)]

    def talk(name: str) -> list[str]:
        with users.named(name) as session:
            said = [chat.run(words=f"{name} {n}", session=session) for n in range(2)]
        return [one["talker"].text for one in said]

    with Session() as users, ThreadPoolExecutor(4) as threads:
        heard = list(threads.map(talk, names))
        assert users.statistics().tickets == 0
    assert heard == [conversation(chat, name) for name in names]


@pytest.mark.anyio
async def test_a_cell_of_a_notebook_goes_on_with_a_conversation(chat: Workflow) -> None:
    """`run` where an event loop runs, and `arun` in the next cell."""
    with Session() as session:
        first = chat.run(words="anna 0", session=session)
        second = await chat.arun(words="anna 1", session=session)
    heard = [one["talker"].text for one in (first, second)]
    assert heard == conversation(chat, "anna")
