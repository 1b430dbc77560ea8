"""The scripted model: what a workflow does with answers that a test chose."""

from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
from processes import LIMIT_S

from unspoken.agents import Agent, Workflow
from unspoken.agents.events import Event, MessageCarried, RunFinished, TokenWritten
from unspoken.agents.testing import FakeBridge, ScriptedModel
from unspoken.channels import (
    AgentError,
    InputError,
    ProjectedCacheChannel,
    RunTimeout,
    SameModelCacheChannel,
)

YAML = """
name: review
models: {small: owner/model}
agents:
  writer:
    model: small
    prompt: "{% if turn == 1 %}Write of {{ inputs.topic }}.{% else %}{{ critic.text }}{% endif %}"
    max_turns: 3
  critic: {model: small, prompt: "Is it good?", memory: turn}
edges:
  - {from: writer, to: critic}
  - {from: critic, to: writer, loop: true, when: "'yes' not in critic.text"}
inputs: {topic: text}
outputs: {text: "{{ writer.text }}"}
"""


def pair(model: ScriptedModel, other: ScriptedModel | None = None, **connect: Any) -> Workflow:
    """A reader that only reads, and a solver."""
    reader = Agent("reader", model, prompt="Read: {{ inputs.document }}", generate=None)
    solver = Agent("solver", other or model, prompt="What does it say?")
    return Workflow("pair", [reader, solver]).connect(reader, solver, **connect)


def review(tmp_path: Path, model: ScriptedModel) -> Workflow:
    """A writer and a critic from a file, on a scripted model."""
    file = tmp_path / "review.yaml"
    file.write_text(YAML, encoding="utf-8")
    return Workflow.from_yaml(file, models={"small": model})


def lone(model: ScriptedModel, prompt: str = "Go.", **settings: Any) -> Workflow:
    return Workflow("lone", [Agent("writer", model, prompt=prompt, **settings)])


def test_a_loop_goes_on_until_the_critic_is_content(tmp_path: Path) -> None:
    """Agents write their answers turn by turn, and read each other's."""
    model = ScriptedModel({"writer": ["draft", "better", "best"], "critic": ["no", "yes"]})
    result = review(tmp_path, model).run(topic="harbours")
    assert result.outputs == {"text": "better"}
    assert result["critic"].turns == ("no", "yes")
    first, second = model.prompts["writer"]
    assert first.endswith("Write of harbours.<|im_end|>\n<|im_start|>assistant\n")
    assert "draft" in second and second.startswith(first)
    assert "draft" in model.prompts["critic"][0] and model.prompts["nobody"] == []


def test_turns_are_counted_anew_in_every_run(tmp_path: Path) -> None:
    """A script serves many runs; what was asked is kept of all."""
    model = ScriptedModel({"writer": "draft", "critic": ["no", "yes"]})
    flow = review(tmp_path, model)
    assert [flow.run(topic="x")["critic"].turns for _ in range(2)] == [("no", "yes")] * 2
    assert len(model.prompts["critic"]) == 4


def test_a_function_answers_what_it_is_asked() -> None:
    """It gets the agent, the turn and the prompt; an agent that runs per item has many turns."""
    asked = []

    def answer(agent: str, turn: int, prompt: str) -> str:
        asked.append((agent, turn))
        return prompt.partition("Item ")[2][:1].upper()

    agent = Agent("each", ScriptedModel(answer), prompt="Item {{ item }}", for_each="inputs.items")
    result = Workflow("rows", [agent]).run(items=["a", "b"])
    assert result["each"].text == "A\n\nB" and asked == [("each", 1), ("each", 2)]


@pytest.mark.parametrize(
    ("answers", "found", "expected", "fix"),
    [
        ({"writr": "x"}, "no answers of 'writer'", "writr", "did you mean 'writr'?"),
        ({"b": "x"}, "no answers of 'writer'", "b", "give the script an answer of 'writer'"),
        (
            {"writer": []},
            "no answer of 'writer' for its turn 1",
            "at most 0 turns",
            "add an answer",
        ),
    ],
)
def test_a_missing_answer_is_told(answers: Any, found: str, expected: str, fix: str) -> None:
    """The error names the agent and its turn, and what the script has."""
    with pytest.raises(AgentError, match="agent 'writer' failed") as caught:
        lone(ScriptedModel(answers)).run()
    error = caught.value
    assert found in error.found and expected in error.expected and fix in error.fix
    assert error.exit_code == InputError.exit_code


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_p": 0.5, "top_k": 3}])
@pytest.mark.parametrize("words", ["plain words", "漢字 🙂 <|im_end|>", ""])
def test_an_answer_is_written_as_it_is(words: str, settings: dict[str, Any]) -> None:
    """Whatever its characters, a marker among them, and however tokens are sampled."""
    result = lone(ScriptedModel({"writer": words}), generate=settings).run()
    (turn,) = result.report.agents["writer"]
    assert result["writer"].text == words and turn.finish == "stop"
    assert turn.generated_tokens == len(ScriptedModel({}).text.encode_words(words)) + 1
    assert turn.prompt_tokens == turn.prefilled_tokens


def test_the_limit_and_a_stop_string_end_an_answer() -> None:
    """As they end what a model with weights writes."""
    limited = lone(ScriptedModel({"writer": "xyzw"}), generate={"max_new_tokens": 2}).run()
    assert limited["writer"].text == "xy" and limited.report.agents["writer"][0].finish == "length"
    stopped = lone(ScriptedModel({"writer": "one. two"}), generate={"stop": [". "]}).run()
    assert stopped["writer"].text == "one" and stopped.report.agents["writer"][0].finish == "stop"
    with pytest.raises(AgentError, match="the context has"):
        lone(ScriptedModel({"writer": "x"}, max_positions=8)).run()


def test_a_cache_goes_over_an_edge_as_with_any_model() -> None:
    """The plan's modes and the report's counts are those of real states."""
    flow = pair(ScriptedModel({"solver": "a lighthouse"}))
    (planned,) = flow.plan(document="a long document").edges
    report = flow.run(document="a long document").report
    (edge,), (turn,) = report.edges, report.agents["solver"]
    assert planned.mode == edge.mode == "continuation" and edge.exact
    assert turn.reused_tokens >= edge.tokens and report.peak_state_bytes > 0


def test_models_of_two_names_are_two_models() -> None:
    """Their cache goes by a bridge or not at all, and the report says why."""
    ends = ScriptedModel({}, name="one"), ScriptedModel({"solver": "so"}, name="two")
    fallen = pair(*ends, channel="same_model_cache").run(document="words").report.edges[0]
    assert fallen.mode == "text" and fallen.fallback is not None
    assert fallen.fallback.channel == "same_model_cache"
    bridge = FakeBridge(*ends)
    carried = pair(*ends, channel=ProjectedCacheChannel(bridge)).run(document="words")
    assert carried.report.edges[0].mode == "projected" and carried["solver"].text == "so"
    assert len(bridge.asked) == 1


def test_a_splice_is_repaired_as_its_edge_says() -> None:
    """Behind a system prompt; finding what deviates runs layers of zeros."""
    model = ScriptedModel({"solver": "so"})
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    solver = Agent("solver", model, prompt="What?", system="Be brief.")
    flow = Workflow("spliced", [reader, solver])
    flow.connect(reader, solver, SameModelCacheChannel(sink=2, deviation=0.25))
    result = flow.run(document="some words of a document")
    (edge,) = result.report.edges
    assert edge.mode == "splice" and edge.repaired > 2 and result["solver"].text == "so"


def test_no_bridge_is_fitted_between_scripts() -> None:
    """A workflow that fits what it lacks leaves such an edge to text."""
    agents = [
        Agent("reader", ScriptedModel({}, name="one"), prompt="Hello.", generate=None),
        Agent("solver", ScriptedModel({"solver": "so"}, name="two"), prompt="What?"),
    ]
    flow = Workflow("fits", agents, bridges="fit").connect("reader", "solver", "projected_cache")
    (edge,) = flow.run().report.edges
    assert edge.mode == "text" and edge.fallback is not None
    assert "without weights" in edge.fallback.cause


@pytest.mark.anyio
async def test_a_stream_tells_every_word() -> None:
    """Tokens come one by one, and a message is carried before."""
    flow = pair(ScriptedModel({"solver": "a lighthouse 🙂"}))
    async with aclosing(flow.stream(document="words")) as stream:
        events: list[Event] = [event async for event in stream]
    words = [event.text for event in events if isinstance(event, TokenWritten)]
    assert "".join(words) == "a lighthouse 🙂" and len(words) > 5
    kinds = list(map(type, events))
    assert kinds.index(MessageCarried) < kinds.index(TokenWritten)
    assert isinstance(events[-1], RunFinished)


@pytest.mark.anyio
async def test_a_run_can_be_cancelled() -> None:
    """Leaving the stream ends a long answer, and so does a timeout."""
    flow = lone(ScriptedModel({"writer": "word " * 4000}), generate={"max_new_tokens": 10_000})
    async with aclosing(flow.stream()) as stream:
        async for event in stream:
            if isinstance(event, TokenWritten):
                break
    hasty = lone(
        ScriptedModel({"writer": "word " * 4000}), generate={"max_new_tokens": 10_000}, timeout=0.01
    )
    with pytest.raises(RunTimeout):
        await hasty.arun()
    with anyio.fail_after(LIMIT_S):
        assert (await lone(ScriptedModel({"writer": "x"})).arun())["writer"].text == "x"


def test_an_answer_may_quote_its_prompt() -> None:
    """Tokens that stand in the prompt may be guessed; the answer is the script's all the same."""
    words = "the key of the cache is in the document that the reader was for"
    answer = f"{words}, and {words[:30]}?"
    flow = lone(ScriptedModel({"writer": answer}), prompt=f"Say: {words}. {words}.")
    assert flow.run()["writer"].text == answer


def test_a_model_for_no_name_of_the_file_is_refused(tmp_path: Path) -> None:
    """The error lists the file's models."""
    file = tmp_path / "review.yaml"
    file.write_text(YAML, encoding="utf-8")
    with pytest.raises(InputError, match="'smal', which is no model") as caught:
        Workflow.from_yaml(file, models={"smal": ScriptedModel({})})
    assert caught.value.expected == "small" and "small" in caught.value.fix


def test_an_answer_that_repeats_itself_is_written_as_it_stands() -> None:
    """Guesses at its next words take none of the script."""
    answer = "the key of the cache is the key of the cache and the key of the door"
    model = ScriptedModel({"a": answer})
    agent = Agent("a", model, prompt="the key of the cache", generate={"max_new_tokens": 60})
    assert Workflow("w", [agent]).run()["a"].text == answer
