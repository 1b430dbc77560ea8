"""Runs that go on where they were."""

from pathlib import Path
from typing import Any, Literal

import pytest
from runs import carried, cut_off, wrote

from unspoken.agents import Agent, LocalModel, RunResult, Workflow
from unspoken.agents.runs import RunStore
from unspoken.agents.testing import ScriptedModel, tiny_model
from unspoken.channels import StoreError

FEW = {"max_new_tokens": 6}
SAMPLED = {**FEW, "temperature": 1.0, "seed": 3}
TURNS = 6

Memory = Literal["run", "turn"]


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def loop(model: Any, memory: Memory = "run", prompt: str = "turn {{ turn }}") -> Workflow:
    """Two agents that hand each other caches, three turns each."""
    first = Agent("first", model, prompt=prompt, generate=FEW, max_turns=3, memory=memory)
    second = Agent("second", model, prompt="reply", generate=SAMPLED, memory=memory)
    flow = Workflow("loop", [first, second]).connect(first, second, "same_model_cache")
    return flow.connect(second, first, "same_model_cache", loop=True)


@pytest.mark.parametrize(("memory", "states"), [("run", False), ("run", True), ("turn", False)])
def test_a_run_that_died_ends_as_one_that_did_not(
    model: LocalModel, store: RunStore, memory: Memory, states: bool
) -> None:
    """Greedy and seeded turns are the same, and caches are carried as they were."""
    plain = loop(model, memory).run(run_id="a", store=store, states=states)
    for turns in (4, 1):
        cut_off(store, "a", turns)
        again = loop(model, memory).run(run_id="a", store=store, states=states)
        assert wrote(again) == wrote(plain) and carried(again) == carried(plain), turns
        assert store.get("a").status == "finished" and store.get("a").turns == TURNS


def test_a_turn_that_filled_its_context_is_carried_again(store: RunStore) -> None:
    """Its state, which holds more than any prompt may, is computed again too."""
    script = ScriptedModel({"a": "word " * 99, "b": "end"}, max_positions=128)
    agents = [
        Agent("a", script, prompt="go " * 30, generate={"max_new_tokens": 200}),
        Agent("b", script, prompt="go", generate={"max_new_tokens": 2}),
    ]
    full = Workflow("full", agents).connect("a", "b", "same_model_cache")
    first = full.run(run_id="a", store=store)
    cut_off(store, "a", 1)
    again = full.run(run_id="a", store=store)
    assert wrote(again) == wrote(first) and carried(again) == carried(first)


def test_finished_turns_are_not_computed_again(store: RunStore) -> None:
    """Of six turns, those that a dead run had ended are had from the store."""
    script = ScriptedModel(lambda agent, turn, prompt: f"{agent} {turn}")
    loop(script).run(run_id="a", store=store)
    cut_off(store, "a", 4)
    script.prompts.clear()
    loop(script).run(run_id="a", store=store)
    asked = [prompt for prompts in script.prompts.values() for prompt in prompts]
    assert sum(prompt.endswith("assistant\n") for prompt in asked) == TURNS - 4


def test_a_finished_run_is_had_again_as_it_is(store: RunStore) -> None:
    """Nothing is computed, and the inputs need not be given again."""
    script = ScriptedModel({"one": "the answer"})
    flow = Workflow("one", [Agent("one", script, prompt="{{ inputs.q }}")])
    flow.run(q="who?", run_id="a", store=store)
    assert flow.run(run_id="a", store=store).outputs == {"one": "the answer"}
    assert len(script.prompts["one"]) == 1


def test_items_that_had_ended_stay(store: RunStore) -> None:
    """A death among the items of for_each costs those that had not ended."""
    script = ScriptedModel(lambda agent, turn, prompt: prompt.split()[1])
    agent = Agent("each", script, prompt="{{ item }}", for_each="inputs.rows")
    flow = Workflow("items", [agent])
    first = flow.run(rows=["one", "two", "three", "four"], run_id="a", store=store)
    cut_off(store, "a", 0, computed=2)
    script.prompts.clear()
    again = flow.run(run_id="a", store=store)
    assert again["each"].items == first["each"].items and len(script.prompts["each"]) == 2


def test_who_came_first_stays_first(store: RunStore) -> None:
    """An agent with ``join: any`` reads the message that it had read."""
    script = ScriptedModel(
        lambda agent, turn, prompt: "long words " * 9 if agent == "slow" else "x"
    )
    agents = [Agent(name, script, prompt="go") for name in ("slow", "quick")]
    reader = Agent("reader", script, prompt="read", join="any", max_turns=1)
    flow = Workflow("race", [*agents, reader])
    for agent in agents:
        flow.connect(agent, reader, "text")
    first = flow.run(run_id="a", store=store)
    read = [edge.sharer for edge in first.report.edges]
    cut_off(store, "a", 2)
    assert [edge.sharer for edge in flow.run(run_id="a", store=store).report.edges] == read


@pytest.mark.parametrize("harm", ["missing", "changed"])
def test_a_state_that_is_lost_is_computed_again(
    model: LocalModel, store: RunStore, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The run says so in its log, and ends as it would have."""
    plain = loop(model).run()
    loop(model).run(run_id="a", store=store, states=True)
    cut_off(store, "a", 3)
    for file in store.states.glob("*.packet"):
        if harm == "missing":
            file.unlink()
        else:
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)
    again = loop(model).run(run_id="a", store=store, states=True)
    assert wrote(again) == wrote(plain) and "computed again" in caplog.text


def refused(flow: Workflow, store: RunStore, **more: Any) -> StoreError:
    with pytest.raises(StoreError) as caught:
        flow.run(run_id="a", store=store, **more)
    return caught.value


def test_another_workflow_model_or_input_is_refused(model: LocalModel, store: RunStore) -> None:
    """The error names what differs."""
    flow = Workflow("one", [Agent("one", model, prompt="{{ inputs.q }}", generate=FEW)])
    flow.run(q="who?", run_id="a", store=store)
    other = Workflow("one", [Agent("one", model, prompt="so {{ inputs.q }}", generate=FEW)])
    sibling = Workflow("one", [Agent("one", tiny_model(1), prompt="{{ inputs.q }}", generate=FEW)])
    assert "agents.one.prompt was '{{ inputs.q }}'" in refused(other, store).found
    assert "model of agent one.weights" in refused(sibling, store).found
    error = refused(flow, store, q="when?")
    assert "input q was 'who?', and is 'when?'" in error.found and error.kind == "different"


def test_anyway_runs_again_what_differs(store: RunStore) -> None:
    """Turns before the change are had from the store; those from it on are run."""

    def flow(prompt: str) -> Workflow:
        agents = [Agent("a", script, prompt="go"), Agent("b", script, prompt=prompt)]
        return Workflow("two", agents).connect("a", "b", "text")

    script = ScriptedModel({"a": "first", "b": "second"})
    flow("then").run(run_id="r", store=store)
    script.prompts.clear()
    result: RunResult = flow("then what").run(run_id="r", store=store, anyway=True)
    assert list(script.prompts) == ["b"] and result["a"].text == "first"


def test_anyway_does_not_go_on_without_an_agent(store: RunStore) -> None:
    """Where an agent that had a turn is gone, nobody knows what became of its words."""
    script = ScriptedModel({"a": "first", "b": "second"})
    Workflow("w", [Agent("a", script, prompt="go")]).run(run_id="a", store=store)
    other = Workflow("w", [Agent("b", script, prompt="go")])
    assert "agents.a was" in refused(other, store, anyway=True).found


def test_a_message_from_elsewhere_must_be_the_same(model: LocalModel, store: RunStore) -> None:
    """It is given again when the run goes on, and another one is refused."""
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    solver = Agent("solver", model, prompt="who is it?", generate=FEW)
    flow = Workflow("w", [reader, solver]).connect(reader, solver, "same_model_cache")
    message = model.message("the key of the cache", sharer="reader")
    first = flow.run({"reader": message}, document="", run_id="a", store=store)
    cut_off(store, "a", 0)
    again = flow.run({"reader": message}, run_id="a", store=store)
    assert wrote(again) == wrote(first)
    other = {"reader": model.message("the cache of the key", sharer="reader")}
    with pytest.raises(StoreError, match="message received for reader"):
        flow.run(other, run_id="a", store=store)


def test_an_input_that_is_called_like_an_option_is_an_input(store: RunStore) -> None:
    """A workflow may have an input `run_id`; its runs then have ids of their own."""
    script = ScriptedModel(lambda agent, turn, prompt: "ok")
    flow = Workflow("w", [Agent("a", script, prompt="{{ inputs.run_id }}")])
    flow.run(run_id="seven", store=store)
    assert "seven" in script.prompts["a"][0]
    assert [run.id for run in store.runs()] != ["seven"]
