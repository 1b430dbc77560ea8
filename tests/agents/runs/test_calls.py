"""Calls of tools in runs that are kept: each is made once, and none is forgotten."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from runs import cut_off

from unspoken.agents import Agent, Workflow
from unspoken.agents.runs import RunStore
from unspoken.agents.runs.calls import Calls
from unspoken.agents.runs.journal import UNKNOWN
from unspoken.agents.testing import ScriptedModel
from unspoken.agents.tools import tool


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path, durable=False)


class Post:
    """A workflow that sends a letter, and who got one.

    Args:
        to: Whom the model writes to first.
        harmless: Whether a letter may be sent twice.
        retry: How often the turn is tried.
    """

    def __init__(self, to: str = "ann", *, harmless: bool = False, retry: Any = None) -> None:
        self.sent: list[str] = []
        self.to, self.broken = to, 0

        @tool(idempotent=harmless)
        def send(to: str) -> str:
            """Send."""
            if to == "nobody":
                raise ValueError("no such person")
            self.sent.append(to)
            return f"letter {len(self.sent)}"

        self.model = ScriptedModel(self.words)
        settings: Any = {"generate": {"max_new_tokens": 80}, "tools": [send], "retry": retry}
        self.flow = Workflow("post", [Agent("a", self.model, prompt="Go.", **settings)])

    def words(self, agent: str, turn: int, prompt: str) -> str:
        if "returned" not in prompt:
            return f'{{"name": "send", "arguments": {{"to": "{self.to}"}}}}'
        if self.broken:
            self.broken -= 1
            raise TimeoutError("broken")
        return "done"


def killed(store: RunStore, *, turns: int, during: bool = False) -> None:
    """Leave what a run had when it was killed after its call, or during it."""
    cut_off(store, "r", 0, computed=turns)
    if during:
        with closing(sqlite3.connect(store.file)) as db, db:
            db.execute("UPDATE calls SET result = NULL")


@pytest.mark.parametrize("to", ["ann", "nobody"])
def test_a_call_that_had_ended_is_not_made_again(store: RunStore, to: str) -> None:
    """What it gave is had from the store, an error too, and the turn goes on from there."""
    post = Post(to)
    first = post.flow.run(run_id="r", store=store).report.agents["a"][0].tool_calls
    killed(store, turns=1)
    again = post.flow.run(run_id="r", store=store)
    assert again.report.agents["a"][0].tool_calls == first and len(post.sent) == (to == "ann")
    assert again.report.unknown_calls == () == store.get("r").calls


@pytest.mark.parametrize("harmless", [False, True])
def test_a_call_that_was_cut_off_is_unknown(store: RunStore, harmless: bool) -> None:
    """It is not made again, unless that does no harm; model, report and store are told."""
    post = Post(harmless=harmless)
    post.flow.run(run_id="r", store=store)
    killed(store, turns=1, during=True)
    report = post.flow.run(run_id="r", store=store).report
    (call,) = report.agents["a"][0].tool_calls
    assert call.unknown is not harmless and len(post.sent) == 1 + harmless
    assert [one.id for one in report.unknown_calls] == ([] if harmless else ["a.1.1"])
    assert len(store.get("r").calls) == len(report.to_dict()["unknown_calls"])
    assert (UNKNOWN in post.model.prompts["a"][-1]) is not harmless


@pytest.mark.parametrize("during", [False, True])
def test_a_turn_that_now_calls_something_else_forgets_nothing(
    store: RunStore, during: bool
) -> None:
    """Both calls stand in the store; the one that no turn has read is reported."""
    post = Post()
    post.flow.run(run_id="r", store=store)
    killed(store, turns=0, during=during)
    post.to = "bob"
    report = post.flow.run(run_id="r", store=store).report
    assert post.sent == ["ann", "bob"]
    assert [call.arguments for call in report.unknown_calls] == [{"to": "ann"}]
    assert [call.number for call in store.calls("r")] == [1, 2]


def test_a_turn_that_is_tried_again_has_its_results(store: RunStore) -> None:
    """The call of the first try is not made in the second one."""
    post = Post(retry={"attempts": 2, "wait": 0})
    post.broken = 1
    report = post.flow.run(run_id="r", store=store).report
    assert post.sent == ["ann"] and report.agents["a"][0].attempts == 2
    assert report.unknown_calls == ()


def test_runs_at_a_time_keep_their_own_calls(store: RunStore) -> None:
    """A run that is not kept makes its calls though another one has made them."""
    post = Post()
    post.flow.run(run_id="r", store=store)
    post.flow.run()
    assert post.sent == ["ann", "ann"] and len(store.calls("r")) == 1


@pytest.mark.anyio
async def test_a_try_that_first_calls_something_else_repeats_no_call(store: RunStore) -> None:
    """Each try reads the calls of its turn anew."""
    calls, place, made = Calls(store, "r"), ("a", 1, -1), list[str]()

    async def call(arguments: str) -> None:
        async def make() -> str:
            made.append(arguments)
            return "done"

        await calls.result(place, "send", arguments, make, idempotent=False)

    for tried in (["ann"], ["bob", "ann"]):
        calls.begin(place)
        for arguments in tried:
            await call(arguments)
    assert made == ["ann", "bob"]


def test_a_turn_that_failed_on_each_try_is_resumed_as_it_ended(store: RunStore) -> None:
    """Its tries wrote different things, as without a seed; what the last one did counts."""
    post = Post(retry={"attempts": 2, "wait": 0})
    call = '{"name": "send", "arguments": {"to": "%s"}}'
    said = [call % "ann", call % "bob", None, call % "carl", None]

    def words(agent: str, turn: int, prompt: str) -> str:
        text = said.pop(0)
        if text is None:
            raise TimeoutError("broken")
        return text

    post.model.answers = words
    (agent,) = post.flow.spec.agents.values()
    failing = agent.model_copy(update={"on_error": "default", "default": "nothing"})
    post.flow.spec = post.flow.spec.model_copy(update={"agents": {"a": failing}})
    assert post.flow.run(run_id="r", store=store)["a"].text == "nothing" and not said
    cut_off(store, "r", 1, computed=9)
    assert post.flow.run(run_id="r", store=store)["a"].text == "nothing"
    assert post.sent == ["ann", "bob", "carl"]
    cut_off(store, "r", 1, computed=9)
    said.append("at last")  # what is there is had again, and then it goes on
    assert post.flow.run(run_id="r", store=store, anyway=True)["a"].text == "at last"
