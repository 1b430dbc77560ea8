"""What makes a turn or a run another one, and what does not."""

import math
from pathlib import Path
from typing import Any

import pytest
from mcp_servers import OBJECT, told_server
from runs import cut_off

from unspoken.agents import Agent, Workflow
from unspoken.agents.runs import Question, RunStore
from unspoken.agents.runs.answers import checked_answer
from unspoken.agents.runs.engine import _report, _usage
from unspoken.agents.spec.generate import GenerateSpec
from unspoken.agents.testing import ScriptedModel
from unspoken.agents.tools import McpServer
from unspoken.channels import InputError, RunWaiting, SameModelCacheChannel, StoreError

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path, durable=False)


@pytest.mark.parametrize("change", [{"stop": ["."]}, {"schema": SCHEMA}])
def test_a_turn_of_another_shape_is_another_turn(store: RunStore, change: Any) -> None:
    """Its old answer does not come back."""

    def one(**generate: Any) -> Workflow:
        generate = {"max_new_tokens": 40, **generate}
        return Workflow("w", [Agent("a", script, prompt="go", generate=generate)])

    script = ScriptedModel({"a": '{"n": 4}'})
    one().run(run_id="a", store=store)
    script.prompts.clear()
    cut_off(store, "a", 0, computed=1)
    one().run(run_id="a", store=store)
    assert not script.prompts["a"]
    one(**change).run(run_id="a", store=store, anyway=True)
    assert script.prompts["a"]


def test_an_edge_that_carries_otherwise_is_named(store: RunStore) -> None:
    """A channel of other settings is another one, though the workflow's file may not say so."""

    def two(sink: int) -> Workflow:
        agents = [Agent(name, script, prompt="go") for name in ("a", "b")]
        return Workflow("w", agents).connect("a", "b", SameModelCacheChannel(sink=sink))

    script = ScriptedModel({"a": "one", "b": "two"})
    two(2).run(run_id="a", store=store)
    with pytest.raises(StoreError, match=r"edge 0 a->b.settings was"):
        two(3).run(run_id="a", store=store)


def test_inputs_come_back_as_they_were_read(store: RunStore) -> None:
    """Keys are texts from the first run on, and what is no number is equal to itself."""
    script = ScriptedModel({"a": "x"})
    agents = [Agent("a", script, prompt="{{ inputs.d[0]['1'] }} {{ inputs.d }}")]
    flow = Workflow("w", agents, inputs={"d": "list"})
    given: dict[str, Any] = {"d": [{1: "one"}, math.nan]}
    result = flow.run(run_id="a", store=store, **given)
    assert flow.run(run_id="a", store=store, **given).outputs == result.outputs


def test_records_of_another_release_are_read() -> None:
    """What it has written besides is left out."""
    usage = _usage({"prompt_tokens": 3, "novelty": 1})
    assert usage.prompt_tokens == 3
    told = {"channel": "text", "mode": "text", "exact": True, "reason": "", "tokens": 1}
    report = _report({**told, "reused": 0, "repaired": 0, "bytes": 1, "novelty": 1})
    assert report.channel == "text"


@pytest.mark.parametrize(
    ("generate", "good"),
    [({"choices": ["yes", "no"]}, "no"), ({"regex": "[0-9]+"}, "12"), ({"schema": SCHEMA}, "")],
)
def test_a_persons_words_have_the_agents_shape(generate: Any, good: str) -> None:
    """Words that would fail the turn for ever are refused at once; those on an edge are free."""
    asked = Question(id="a.1", agent="a", turn=1, kind="edit", text="")
    settings, good = GenerateSpec.model_validate(generate), good or '{"n": 1}'
    assert checked_answer(asked, good, settings) == good
    with pytest.raises(InputError, match="not as its agent's are"):
        checked_answer(asked, "neither", settings)
    edge = Question(id="a.1.0", agent="a", turn=1, kind="edit", text="", receiver="b")
    assert checked_answer(edge, "neither", settings) == "neither"


def test_words_of_the_wrong_shape_are_not_kept(store: RunStore) -> None:
    """The question stays open."""
    generate: Any = {"schema": SCHEMA, "max_new_tokens": 40}
    agent = Agent("a", ScriptedModel({}), prompt="?", ask="answer", generate=generate)
    flow = Workflow("w", [agent])
    with pytest.raises(RunWaiting):
        flow.run(run_id="a", store=store)
    with pytest.raises(InputError, match="not as its agent's are"):
        flow.resume("a", "neither", store=store)
    assert store.get("a").open and flow.resume("a", '{"n": 1}', store=store)["a"].data == {"n": 1}


def test_a_turn_that_failed_has_no_words(store: RunStore) -> None:
    """Those of the turn before do not stand in its place."""

    def answer(agent: str, turn: int, prompt: str) -> str:
        if (agent, turn) == ("a", 2):
            raise ValueError("broken")
        return f"{agent} {turn}"

    script = ScriptedModel(answer)
    first = Agent("a", script, prompt="go", max_turns=2, on_error="skip")
    flow = Workflow("w", [first, Agent("b", script, prompt="go")]).connect("a", "b", "text")
    flow.connect("b", "a", "text", loop=True).run(run_id="a", store=store)
    assert ("a", 2, "") in store.words("a")


def test_no_password_of_a_server_is_kept(store: RunStore, tmp_path: Path) -> None:
    """Another one is no other workflow."""

    def one(word: str) -> Workflow:
        server = McpServer(
            name="told",
            command=told_server(tools=[{"name": "one", "inputSchema": OBJECT}]),
            env={"TOKEN": word},
        )
        return Workflow("w", [Agent("a", script, prompt="go", tools=[server])])

    script = ScriptedModel({"a": "x"})
    one("swordfish").run(run_id="a", store=store)
    assert "swordfish" not in str(store.get("a"))
    assert one("starfish").run(run_id="a", store=store)["a"].text == "x"
