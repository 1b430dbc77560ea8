"""Agents that call tools: what is called, what the model reads of it, and what may not run."""

import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from tool_templates import TOOL_TEMPLATES

from unspoken.agents import Agent, Workflow
from unspoken.agents.events import Event, ToolCalled, ToolReturned
from unspoken.agents.shapes.calls import calling_shape
from unspoken.agents.spec.spec import GenerateSpec
from unspoken.agents.testing import ScriptedModel, tiny_model
from unspoken.agents.tools import Tool, tool
from unspoken.agents.tools.ref import ToolRef
from unspoken.agents.tools.toolbox import Toolbox
from unspoken.channels import InputError, WorkflowError

CALL = '{"name": "add", "arguments": {"a": 1, "b": 3}}'


@tool
def add(a: int, b: int = 2) -> int:
    """Add two
    numbers.

    Not told.

    Args:
        a: The one,
            which comes first.
        b: The other.
    """
    return a + b


async def fail(word: str) -> str:
    """Fail."""
    raise ValueError(f"no {word}")


def takes_an_object(value: InputError) -> str:
    """Take what JSON has not."""
    return str(value)


def asking(model: Any, **settings: Any) -> Workflow:
    settings = {"generate": {"max_new_tokens": 80}, "tools": [add, fail], **settings}
    return Workflow("w", [Agent("a", model, prompt="Go.", **settings)])


def test_a_function_says_what_it_takes() -> None:
    """Types come from annotations, words from the docstring, and Python calls it as before."""
    properties = add.parameters["properties"]
    assert add.description == "Add two numbers."
    assert properties["a"] == {"type": "integer", "description": "The one, which comes first."}
    assert properties["b"]["default"] == 2 and add.parameters["required"] == ["a"]
    assert add(1, 2) == 3
    with pytest.raises(InputError, match="'x' of the tool 'bare' has no type"):
        exec("def bare(x): ...\ntool(bare)", {"tool": tool})


def test_results_come_back_as_turns_of_one_context() -> None:
    """Each call is a pass over the state of those before; an error is a result too."""
    failing = '{"name": "fail", "arguments": {"word": "way"}}'
    model = ScriptedModel({"a": [CALL, failing, "It is 4."]})
    result = asking(model).run()
    (turn,) = result.report.agents["a"]
    first, second = turn.tool_calls
    assert (first.id, first.arguments, first.result, first.failed) == (
        "a.1.1",
        {"a": 1, "b": 3},
        "4",
        False,
    )
    assert second.failed and second.result == "ValueError: no way"
    assert result["a"].text == "It is 4." and "The tool add returned:\n\n4" in model.prompts["a"][1]
    before = [len(model.text.tokenizer(text)["input_ids"]) for text in model.prompts["a"]]
    assert turn.prompt_tokens == sum(before)
    # Of each later pass all of the one before is reused, its words and their end included.
    assert turn.prefilled_tokens < before[-1] and turn.reused_tokens > before[0] + before[1]


def test_after_the_last_call_the_agent_answers() -> None:
    """A call beyond `max_calls` is words."""
    result = asking(ScriptedModel({"a": CALL}), max_calls=1).run()
    assert len(result.report.agents["a"][0].tool_calls) == 1 and result["a"].text == CALL


def test_a_call_is_what_the_schema_says_or_no_call() -> None:
    """A model cannot begin a call that no tool takes."""
    shape = calling_shape(GenerateSpec(), (model := tiny_model()), [add])
    grammar: Any = shape.grammar

    def takes(words: str) -> bool:
        return bool(grammar.accepts(model.text.encode_words(words)))

    assert takes(CALL) and takes("It is 4.") and takes("")
    assert not takes(CALL.replace("add", "sub")) and not takes(CALL.replace("1", '"1"'))
    only_calls: Any = calling_shape(GenerateSpec(), model, [add], answers=False).grammar
    assert not only_calls.accepts(model.text.encode_words("It is 4."))
    assert only_calls.accepts(model.text.encode_words(CALL))
    assert not takes('{"name": "add"}') and not takes(CALL + " and so on")


def test_an_answer_after_tools_has_its_shape() -> None:
    """A schema binds the answer as well."""
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    model = ScriptedModel({"a": [CALL, '{"sum": 4}']})
    flow = asking(model, generate={"schema": schema, "max_new_tokens": 80})
    assert flow.run()["a"].data == {"sum": 4}


def test_every_call_is_told() -> None:
    """Before and after, with the call's id."""

    async def follow() -> list[Event]:
        async with aclosing(asking(ScriptedModel({"a": [CALL, "4"]})).stream()) as events:
            return [one async for one in events if isinstance(one, ToolCalled | ToolReturned)]

    called, returned = anyio.run(follow)
    assert isinstance(called, ToolCalled) and isinstance(returned, ToolReturned)
    assert called.id == returned.call.id == "a.1.1" and returned.call.result == "4"


def test_a_file_runs_no_tool_unless_it_is_allowed(tmp_path: Path) -> None:
    """Nothing is imported before somebody has said so."""
    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"
        "def add(a: int, b: int) -> int:\n    return a + b\n"
    )
    file = tmp_path / "w.yaml"
    file.write_text(
        "name: w\nmodels: {m: owner/m}\n"
        "agents: {a: {model: m, prompt: Go., tools: [mine:add], generate: {max_new_tokens: 80}}}\n"
    )
    models = {"m": ScriptedModel({"a": [CALL, "4"]})}
    with pytest.raises(InputError, match="is a program"):
        Workflow.from_yaml(file).load()  # whose model is not there either
    with pytest.raises(InputError, match="is a program") as error:
        Workflow.from_yaml(file, models=models).run()
    assert "--allow-tools" in error.value.fix and not (tmp_path / "ran").exists()
    allowed = Workflow.from_yaml(file, models=models, allow_tools=True)
    assert allowed.run().report.agents["a"][0].tool_calls[0].result == "4"


def test_a_module_is_run_once_and_where_it_fails_is_told(tmp_path: Path) -> None:
    """Two tools of it share what it keeps; modules of one name in two folders are two."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(
            "from __future__ import annotations\nfrom dataclasses import dataclass\n"
            "kept = []\n@dataclass\nclass Word:\n    text: str = ''\n"
            "def put(word: str) -> int:\n    kept.append(Word(word))\n    return len(kept)\n"
            "def count() -> int:\n    return len(kept)\n"
        )
    one, two = Toolbox(tmp_path / "one"), Toolbox(tmp_path / "two")
    put, count = one.of([ToolRef("mine:put"), ToolRef("mine:count")])
    (other,) = two.of([ToolRef("mine:count")])
    assert put("x") == 1 and count() == 1 and other() == 0
    (tmp_path / "one" / "bad.py").write_text("1 / 0")
    with pytest.raises(InputError, match="'bad:x' fails: ZeroDivisionError"):
        one.of([ToolRef("bad:x")])


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        (None, f"Write {CALL} to add."),
        ({"type": "object", "properties": {"plan": {"type": "object"}}}, f'{{"plan": {CALL}}}'),
    ],
)
def test_a_call_that_is_only_spoken_of_is_not_made(schema: Any, answer: str) -> None:
    """A turn that calls begins with the call."""
    generate = {"max_new_tokens": 90} | ({} if schema is None else {"schema": schema})
    result = asking(ScriptedModel({"a": answer}), generate=generate).run()
    assert not result.report.agents["a"][0].tool_calls and result["a"].text == answer


def test_a_call_that_a_template_marks_may_follow_words() -> None:
    """Many models say first what they are about to do."""
    marked = f"I look.\n<tool_call>\n{CALL}\n</tool_call>"
    model = ScriptedModel({"a": [marked, "4"]}, chat_template=TOOL_TEMPLATES["hermes"])
    result = asking(model, generate={"max_new_tokens": 120}).run()
    assert [call.result for call in result.report.agents["a"][0].tool_calls] == ["4"]
    assert result["a"].text == "4"


def test_a_regex_with_slashes_binds_the_answer_beside_tools() -> None:
    """As it does without tools."""
    settings = GenerateSpec(regex=r"[a/b]\/c/d")
    grammar: Any = calling_shape(settings, (model := tiny_model()), [add]).grammar
    assert grammar.accepts(model.text.encode_words("//c/d"))
    assert not grammar.accepts(model.text.encode_words("c/c/d"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tools": [add], "min_calls": 5}, "min_calls is 5, of at most 4"),
        ({"tools": [3]}, "a int is no tool"),
        ({"tools": ["add"]}, "'add' is no tool"),
        ({"tools": [lambda: 1]}, "a tool is called '<lambda>'"),
        ({"tools": [takes_an_object]}, "arguments of the tool 'takes_an_object' cannot be read"),
        ({"tools": [add], "generate": None}, "tools stand beside generate: none"),
        ({"tools": [add], "generate": {"choices": ["a"]}}, "tools stand beside choices"),
    ],
)
def test_what_is_no_tool_is_refused(settings: dict[str, Any], message: str) -> None:
    """When the agent is made."""
    with pytest.raises(WorkflowError, match=message):
        Agent("a", "owner/m", prompt="x", **settings)


def test_a_tool_that_is_not_there_is_named() -> None:
    """Before a model computes anything."""
    with pytest.raises(InputError, match="'json:lods' is not there"):
        asking(ScriptedModel({"a": "x"}), tools=["json:lods"]).run()


def test_a_spec_keeps_its_tools_by_name() -> None:
    """Written out and read again it is the same; the functions are not in it."""
    from unspoken.agents.spec.loader import dumps, loads

    flow = Workflow("w", [Agent("a", "owner/m", prompt="x", tools=[add])])
    assert isinstance(flow.spec.agents["a"].tools[0].tool, Tool)
    assert loads(dumps(flow.spec)).spec == flow.spec


@pytest.mark.anyio
async def test_a_call_that_hangs_holds_up_no_cancel() -> None:
    """The thread is left behind."""
    begun, go_on = threading.Event(), threading.Event()

    def hangs() -> str:
        """Wait."""
        begun.set()
        go_on.wait()
        return "done"

    late = threading.Timer(60, go_on.set)  # where it does hold the cancel up
    late.start()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tool(hangs).run, {})
            await anyio.to_thread.run_sync(begun.wait)
            tasks.cancel_scope.cancel()
        assert not go_on.is_set()
    finally:
        late.cancel()
        go_on.set()


@pytest.mark.anyio
async def test_tools_wait_for_no_thread_of_others() -> None:
    """The store and the engines have threads of their own."""
    others = anyio.to_thread.current_default_thread_limiter()
    others.total_tokens = 1
    async with others:
        with anyio.fail_after(60):  # where it does wait
            assert await add.run({"a": 1}) == "3"
