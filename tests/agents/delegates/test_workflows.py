"""Workflows as agents: a run inside of a run."""

from pathlib import Path
from typing import Any

import anyio
import pytest

from unspoken.agents import Agent, Workflow
from unspoken.agents.events import TurnFinished, replay
from unspoken.agents.runs import RunStore
from unspoken.agents.spec import loader
from unspoken.agents.spec.loader import dumps, load_workflow, loads
from unspoken.agents.testing import ScriptedModel
from unspoken.channels import AgentError, InputError, RunTimeout, RunWaiting, WorkflowError

FEW = {"max_new_tokens": 16}


def inner(model: Any, *, outputs: dict[str, str] | None = None, **second: Any) -> Workflow:
    """Somebody who finds something about a topic, and somebody who sums it up."""
    finder = Agent("finder", model, prompt="find {{ inputs.topic }}", generate=FEW)
    summer = Agent("summer", model, prompt="sum up", generate=FEW, **second)
    flow = Workflow("research", [finder, summer], outputs=outputs)
    return flow.connect(finder, summer, share="context")


def outer(model: Any, flow: Workflow, **settings: Any) -> Workflow:
    """A planner, research on what it says, and a writer."""
    planner = Agent("planner", model, prompt="plan", generate=FEW)
    given = {"topic": "{{ planner.text }}", **settings.pop("inputs", {})}
    research = Agent("research", workflow=flow, inputs=given, **settings)
    writer = Agent("writer", model, prompt="on {{ research.text }}", generate=FEW)
    whole = Workflow("book", [planner, research, writer])
    return whole.connect(planner, research).connect(research, writer)


def script(**answers: Any) -> ScriptedModel:
    usual = {"planner": "oaks", "finder": "acorns", "summer": "trees", "writer": "a book"}
    return ScriptedModel({**usual, **answers})


def test_a_workflow_takes_an_agents_turn() -> None:
    """Its input is what the agent reads, its output the agent's words; its turns are reported."""
    model = script()
    result = outer(model, inner(model)).run()
    assert "find oaks" in model.prompts["finder"][0] and "on trees" in model.prompts["writer"][0]
    assert result["research"].text == "trees" and result["research.1/finder"].text == "acorns"
    report = result.report
    assert list(report.agents) == [
        *("planner", "research", "writer", "research.1/finder", "research.1/summer")
    ]
    ends = {edge.receiver: edge.mode for edge in report.edges}
    assert ends == {"research": "text", "writer": "text", "research.1/summer": "continuation"}


def test_several_outputs_are_data() -> None:
    """By name, for templates and in Python."""
    model = script()
    outputs = {"facts": "{{ finder.text }}", "sum": "{{ summer.text }}"}
    research = Agent("research", workflow=inner(model, outputs=outputs), inputs={"topic": "x"})
    writer = Agent("writer", model, prompt="on {{ research.data.facts }}", generate=FEW)
    result = Workflow("book", [research, writer]).connect(research, writer).run()
    assert result["research"].data == {"facts": "acorns", "sum": "trees"}
    assert "on acorns" in model.prompts["writer"][0]


def test_events_have_their_path() -> None:
    """Those of its agents say in which turn of which agent they happened."""
    model = script()

    async def told() -> list[tuple[tuple[str, ...], str]]:
        events = [event async for event in outer(model, inner(model)).stream()]
        return [(e.path, e.agent) for e in events if isinstance(e, TurnFinished)]

    assert anyio.run(told) == [
        ((), "planner"),
        (("research.1",), "finder"),
        (("research.1",), "summer"),
        ((), "research"),
        ((), "writer"),
    ]


def test_each_item_is_a_run_of_its_own() -> None:
    """With values for inputs that are no text."""
    model = ScriptedModel(lambda agent, turn, prompt: prompt.split("find ")[-1].split("<")[0])
    flow = Workflow(
        "sums", [Agent("adder", model, prompt="find {{ inputs.n + 1 }}")], inputs={"n": "integer"}
    )
    each = Agent("each", workflow=flow, inputs={"n": "{{ item }}"}, for_each="inputs.rows")
    result = Workflow("all", [each]).run(rows=[1, 2])
    assert result["each"].items == ("2", "3")
    assert {"each.1.0/adder", "each.1.1/adder"} <= result.agents.keys()


def test_a_loop_runs_it_again() -> None:
    """Each turn is a run from the beginning."""
    model = script(planner=["oaks", "elms"], summer="trees")
    planner = Agent("planner", model, prompt="plan", generate=FEW, max_turns=2)
    research = Agent(
        "research", workflow=inner(model), inputs={"topic": "{{ planner.text }}"}, max_turns=2
    )
    flow = Workflow("loop", [planner, research]).connect(planner, research)
    result = flow.connect(research, planner, loop=True).run()
    assert result["research"].turns == ("trees", "trees")
    finds = [prompt.split("find ")[1][:4] for prompt in model.prompts["finder"]]
    assert finds == ["oaks", "elms"]


def test_what_fails_inside_fails_the_turn() -> None:
    """The error names both agents; on_error is the outer agent's."""
    model = script()
    del model.answers["summer"]  # type: ignore[attr-defined]
    told = "agent 'research' failed: agent 'summer' failed: the script has no answers"
    with pytest.raises(AgentError, match=told) as failed:
        outer(model, inner(model)).run()
    assert failed.value.partial["research.1/finder"].text == "acorns"
    result = outer(model, inner(model), on_error="default", default="nothing").run()
    assert result["research"].text == "nothing" and "on nothing" in model.prompts["writer"][0]


def test_a_try_may_pass_that_failed_inside() -> None:
    """By the kind of the error that was at its root."""
    model, tries = script(), list[str]()

    def shaky(text: str) -> str:
        tries.append(text)
        if len(tries) < 2:
            raise ConnectionError("no line")
        return "there"

    flow = Workflow("shaky", [Agent("asks", shaky, prompt="go")])
    again = Agent("again", workflow=flow, retry={"attempts": 2, "wait": 0.0})
    assert Workflow("outer", [again]).run().outputs == {"again": "there"}
    assert model is not None


def test_its_time_is_limited() -> None:
    """By the outer agent's timeout, which its work is."""

    async def hangs(text: str) -> str:
        await anyio.sleep_forever()
        return text

    flow = Workflow("hangs", [Agent("hanging", hangs, prompt="go")])
    with pytest.raises(RunTimeout, match="'slow' took longer"):
        Workflow("outer", [Agent("slow", workflow=flow, timeout=0.05)]).run()


def test_a_person_is_asked_inside(tmp_path: Path) -> None:
    """The whole run pauses, and goes on inside; finished turns are not computed again."""
    store, model = RunStore(tmp_path), script()
    book = outer(model, inner(model, ask="edit"))
    with pytest.raises(RunWaiting) as waiting:
        book.run(run_id="a", store=store)
    (question,) = waiting.value.questions
    assert (question.id, question.text) == ("research.1/summer.1", "trees")
    assert store.get("a").status == "paused"
    result = book.resume("a", "woods", store=store)
    assert result["research"].text == "woods" and "on woods" in model.prompts["writer"][0]
    assert [len(store.turns(key)) for key in ("a", "a/research.1")] == [3, 2]
    finished = [e.agent for e in replay("a", store) if isinstance(e, TurnFinished)]
    assert finished == ["planner", "finder", "summer", "research", "writer"]
    again = book.resume("a", {question.id: "bushes"}, again=True, store=store)
    assert "on bushes" in model.prompts["writer"][-1] and again["research"].text == "bushes"
    store.remove("a")
    assert not store.turns("a/research.1") and not store.words("a")


def test_a_broken_run_goes_on_inside(tmp_path: Path) -> None:
    """What had finished inside is had from the store, and no more is computed."""
    calls = list[str]()

    def first(text: str) -> str:
        calls.append("first")
        return "one"

    def second(text: str) -> str:
        calls.append("second")
        if calls.count("second") == 1:
            raise ValueError
        return "two"

    steps = Workflow("steps", [Agent("first", first, prompt="a"), Agent("second", second)])
    steps.connect("first", "second")
    whole = Workflow("whole", [Agent("inside", workflow=steps)])
    with pytest.raises(AgentError, match="agent 'inside' failed: agent 'second' failed"):
        whole.run(run_id="a", store=tmp_path)
    result = whole.run(run_id="a", store=tmp_path)
    assert result.outputs == {"inside": "two"} and calls == ["first", "second", "second"]
    assert result.report.agents.keys() == {"inside", "inside.1/first", "inside.1/second"}


MODELS = "models: {m: some/model}\n"
RESEARCH = f"""\
name: research
{MODELS}inputs: {{topic: text}}
agents:
  finder: {{model: m, prompt: "find {{{{ inputs.topic }}}}"}}
"""
BOOK = f"""\
name: book
{MODELS}agents:
  research: {{workflow: research.yaml, inputs: {{topic: oaks}}}}
  writer: {{model: m, prompt: "on {{{{ research.text }}}}"}}
edges:
  - {{from: research, to: writer}}
"""


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "research.yaml").write_text(RESEARCH)
    (tmp_path / "book.yaml").write_text(BOOK)
    return tmp_path / "book.yaml"


def test_a_file_names_another(book: Path) -> None:
    """Beside it; written out, the other stands inside, and is the same."""
    loaded = load_workflow(book)
    assert loads(dumps(loaded.spec)).spec == loaded.spec
    model = script()
    flow = Workflow.from_yaml(book, models={"m": model})
    assert flow.run()["research.1/finder"].text == "acorns"
    assert [edge.mode for edge in flow.plan().edges] == ["text"]
    assert flow.plan().to_dict()["inner"]["research"]["workflow"] == "research"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("inputs: {topic: oaks}", "inputs: {topics: oaks}", "has no input 'topics'"),
        (", inputs: {topic: oaks}", "", "lacks its input 'topic'"),
        ("topic: oaks", 'topic: "{{ writer.text }}"', "cannot be read here"),
        ("workflow: research.yaml", "workflow: resarch.yaml", "there is no file"),
        ("workflow: research.yaml", "model: m, workflow: research.yaml", "stands beside workflow"),
        ("workflow: research.yaml", "workflow: book.yaml", "book.yaml runs itself"),
    ],
)
def test_a_wrong_use_is_refused(book: Path, old: str, new: str, told: str) -> None:
    """With its line."""
    book.write_text(BOOK.replace(old, new))
    with pytest.raises(WorkflowError, match=told) as wrong:
        load_workflow(book)
    assert "book.yaml:4:" in str(wrong.value)


def test_files_that_run_each_other_are_refused(book: Path) -> None:
    """However far the way round is."""
    nested = "{workflow: book.yaml}"
    (book.parent / "research.yaml").write_text(
        f"name: research\n{MODELS}agents:\n  finder: {nested}\n"
    )
    with pytest.raises(WorkflowError, match=r"book\.yaml runs itself"):
        load_workflow(book)


def test_files_that_name_the_next_one_twice_are_not_read_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their number doubles with each, so a few small ones would take hours."""
    monkeypatch.setattr(loader, "MOST_FILES", 5)
    for number in range(3):
        named = f"{{workflow: {number + 1}.yaml}}"
        agents = f"{{a: {named}, b: {named}}}" if number < 2 else "{a: {model: m, prompt: x}}"
        (tmp_path / f"{number}.yaml").write_text(f"name: w\n{MODELS}agents: {agents}\n")
    with pytest.raises(WorkflowError, match="read from more than 5 files"):
        load_workflow(tmp_path / "0.yaml")


def test_what_a_file_cannot_name_is_not_written_out_of_the_inside() -> None:
    """A file with it is one that nobody could load."""
    research = Workflow("research", [Agent("check", str.upper)])
    with pytest.raises(InputError, match="'check' is a function"):
        Workflow("book", [Agent("research", workflow=research)]).to_yaml()


def test_a_mistake_in_the_other_file_is_told_there(book: Path) -> None:
    """With the file that has it."""
    (book.parent / "research.yaml").write_text(RESEARCH.replace("inputs.topic }", "inputs.tpic }"))
    with pytest.raises(WorkflowError, match=r"research\.yaml:5:.*inputs\.tpic"):
        load_workflow(book)


def test_what_only_an_outer_workflow_has_is_refused(book: Path) -> None:
    """A session's conversations, with what to do instead."""
    text = RESEARCH.replace("{model: m,", "{model: m, memory: session,")
    (book.parent / "research.yaml").write_text(text)
    told = "'finder' inside of 'research' has memory: session"
    with pytest.raises(WorkflowError, match=told) as wrong:
        load_workflow(book)
    assert "outer workflow" in str(wrong.value)


def test_tools_beside_the_file_are_those_of_a_workflow_written_in_it(tmp_path: Path) -> None:
    """And so of one that was written out of several files."""
    (tmp_path / "helpers.py").write_text("def twice(n: int) -> int:\n    return 2 * n\n")
    asks = 'agents: {a: {model: m, prompt: Go., tools: ["helpers:twice"]}}'
    inside = f"{{name: inside, models: {{m: none/m}}, {asks}}}"
    file, outer = tmp_path / "flow.yaml", f"{{outer: {{workflow: {inside}}}}}"
    file.write_text(f"name: flow\nmodels: {{m: none/m}}\nagents: {outer}\n")
    model = ScriptedModel({"a": ['{"name": "twice", "arguments": {"n": 4}}', "Done."]})
    result = Workflow.from_yaml(file, models={"m": model}, allow_tools=True).run()
    (call,) = result.report.agents["outer.1/a"][0].tool_calls
    assert (call.result, call.failed) == ("8", False)


def test_tools_of_the_other_file_do_not_run_by_themselves(book: Path) -> None:
    """As those of the file itself."""
    text = RESEARCH.replace("{model: m,", '{model: m, tools: ["evil:run"],')
    (book.parent / "research.yaml").write_text(text)
    (book.parent / "evil.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(InputError, match="has the tool 'evil:run', which is a program"):
        Workflow.from_yaml(book, models={"m": script()}).run()
