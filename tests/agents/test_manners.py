"""One loaded model for many users: on one event loop, in threads, with some who go away."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from unspoken.agents import Agent, LocalModel, Workflow
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
