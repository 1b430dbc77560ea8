"""Workflows as Python code and as files: one specification, loaded once, refused early."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flows import DOCUMENT, QUESTION, own_cache, reader_solver, sibling, stored_model

from unspoken.agents import Agent, LocalModel, RunResult, Workflow
from unspoken.agents.engines.worker import Workers
from unspoken.agents.loading import engines_for
from unspoken.agents.runtime.states import StateStore
from unspoken.channels import SameModelCacheChannel, TextChannel
from unspoken.channels.errors import (
    GeometryMismatch,
    IdentityMismatch,
    InputError,
    ModelReferenceError,
    WorkflowError,
)

GIVEN = {"document": DOCUMENT, "question": QUESTION}

FILE = """
name: reader-solver
models: {small: REF}
inputs: {document: text, question: text}
agents:
  reader: {model: small, prompt: "{{ inputs.document }}", generate: none}
  solver:
    model: small
    prompt: "Question: {{ inputs.question }}"
    generate: {max_new_tokens: 8}
edges:
  - {from: reader, to: solver, channel: same_model_cache, share: prompt, repair: {sink: 2}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder = tmp_path_factory.mktemp("model")
    with own_cache(folder / "cache"):
        yield stored_model(folder / "small")


def in_python(model: LocalModel | str, **settings: Any) -> Workflow:
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    solver = Agent(
        "solver", model, prompt="Question: {{ inputs.question }}", generate={"max_new_tokens": 8}
    )
    flow = Workflow("reader-solver", [reader, solver], **settings)
    return flow.connect(reader, solver, SameModelCacheChannel(share="prompt", sink=2))


@pytest.fixture
def file(model: LocalModel, tmp_path: Path) -> Path:
    path = tmp_path / "flow.yaml"
    path.write_text(FILE.replace("REF", model.ref), encoding="utf-8")
    return path


def test_a_file_and_python_code_give_equal_specifications(model: LocalModel, file: Path) -> None:
    """The same workflow written either way is the same object."""
    assert Workflow.from_yaml(file).spec == in_python(model, models={"small": model}).spec


def test_a_workflow_comes_back_from_its_own_file(model: LocalModel, tmp_path: Path) -> None:
    """What `to_yaml` writes is read as an equal workflow."""
    flow = in_python(model, outputs={"answer": "{{ solver.text }}"}, timeout=60.0)
    path = tmp_path / "again.yaml"
    path.write_text(flow.to_yaml(), encoding="utf-8")
    assert Workflow.from_yaml(path).spec == flow.spec


def test_a_model_comes_back_with_what_it_was_loaded_with(model: LocalModel, tmp_path: Path) -> None:
    """A model object's dtype and device are in the file, where they were asked for or cast to."""
    asked = LocalModel.load(model.ref, dtype="bfloat16", device="cpu")
    path = tmp_path / "again.yaml"
    for one in (asked, model.cast(torch.bfloat16)):
        flow = in_python(one)
        path.write_text(flow.to_yaml(), encoding="utf-8")
        again = Workflow.from_yaml(path)
        assert again.spec == flow.spec
        assert {loaded.dtype for loaded in again.load().models.values()} == {torch.bfloat16}


def test_a_file_runs_as_the_python_code_does(model: LocalModel, file: Path) -> None:
    """Both give the same answer, and `run` needs no event loop."""
    result = Workflow.from_yaml(file).run(**GIVEN)
    assert isinstance(result, RunResult)
    assert result.outputs == in_python(model).run(**GIVEN).outputs
    assert result["solver"].text == result.outputs["solver"]


def test_a_model_made_in_memory_cannot_be_written(model: LocalModel) -> None:
    """It has no reference, and the error says how to get one; it runs all the same."""
    nameless = LocalModel(model.hf, model.tokenizer, identity=model.identity)
    flow = in_python(nameless)
    with pytest.raises(InputError, match="made in memory") as caught:
        flow.to_yaml()
    assert "save it to a folder" in caught.value.fix
    assert flow.run(**GIVEN).outputs == in_python(model).run(**GIVEN).outputs


def test_a_model_is_loaded_once_whatever_its_names(model: LocalModel, tmp_path: Path) -> None:
    """Two names for one reference are one model in memory."""
    path = tmp_path / "flow.yaml"
    text = FILE.replace("{small: REF}", f"{{small: {model.ref}, same: {model.ref}}}")
    path.write_text(text.replace("solver:\n    model: small", "solver:\n    model: same"), "utf-8")
    loaded = Workflow.from_yaml(path).load().models
    assert loaded["small"] is loaded["same"]


def test_a_model_object_is_not_loaded_again(model: LocalModel) -> None:
    """Agents on one object share it."""
    assert list(in_python(model).load().models.values()) == [model]


def test_a_model_whose_turns_nothing_computes_is_refused() -> None:
    """It is neither local nor brings an engine."""
    with pytest.raises(InputError, match="computes turns of object"):
        engines_for({"a": object()}, StateStore(), Workers())  # type: ignore[dict-item]


def test_models_of_equal_names_are_told_apart(model: LocalModel, tmp_path: Path) -> None:
    """Two folders of one name are two models."""
    other = stored_model(tmp_path / "small", 1)
    flow = reader_solver(model, other)
    assert sorted(one.ref for one in flow.load().models.values()) == sorted([model.ref, other.ref])


def test_inputs_are_what_the_templates_read(model: LocalModel) -> None:
    """Without a declaration every `inputs.X` is a text, and what for_each reads a list."""
    each = Agent("each", model, prompt="{{ item }} {{ inputs.hint }}", for_each="inputs.rows")
    found = Workflow("w", [each]).spec.inputs
    assert {name: one.type for name, one in found.items()} == {"rows": "list", "hint": "text"}


@pytest.mark.parametrize(
    ("edge", "found"),
    [
        (("reader", "solvr"), "there is no agent 'solvr'"),
        (("reader", "solver", "telepathy"), "not one of the choices"),
    ],
)
def test_an_edge_that_cannot_be_is_refused_when_connected(
    model: LocalModel, edge: tuple[str, ...], found: str
) -> None:
    """Unknown agents and channels are refused, and the workflow stays as it was."""
    flow = in_python(model)
    before = flow.spec
    with pytest.raises(WorkflowError, match=found):
        flow.connect(*edge)
    assert flow.spec is before


def test_models_that_differ_are_refused_when_connected(model: LocalModel) -> None:
    """A cache channel that must not fall back names the field that differs, before any run."""
    other = sibling(model)
    with pytest.raises(IdentityMismatch, match="other weights") as caught:
        reader_solver(model, other, SameModelCacheChannel(), fallback="error")
    assert caught.value.field == "weights"
    reader_solver(model, other, SameModelCacheChannel())


def test_dtypes_that_differ_are_refused_when_connected(model: LocalModel) -> None:
    """The same weights in another dtype have another cache."""
    half = model.cast(torch.bfloat16)
    with pytest.raises(GeometryMismatch, match="bfloat16"):
        reader_solver(half.cast(torch.float32), half, SameModelCacheChannel(), fallback="error")


def test_everything_wrong_with_a_workflow_is_said_before_it_loads(model: LocalModel) -> None:
    """A prompt that reads an agent without an edge stops the run before any model is loaded."""
    a = Agent("a", "no/such/model", prompt="{{ b.text }}")
    flow = Workflow("w", [a, Agent("b", "no/such/model", prompt="x")])
    with pytest.raises(WorkflowError, match="no edge to this agent"):
        flow.run()


def test_the_graph_has_the_agents_and_the_edges(model: LocalModel) -> None:
    """`flow.graph` is the networkx graph of the workflow."""
    graph = in_python(model).graph
    assert list(graph.nodes) == ["reader", "solver"]
    assert graph.edges["reader", "solver", 0]["edge"].channel == "same_model_cache"


def test_another_edge_makes_another_plan(model: LocalModel) -> None:
    """A workflow that ran and is extended is planned again."""
    flow = in_python(model)
    flow.run(**GIVEN)
    flow.connect("reader", "solver", TextChannel(share="context"))
    assert len(flow.run(**GIVEN).report.edges) == 2


def test_a_model_that_cannot_be_had_is_found_by_line(file: Path, model: LocalModel) -> None:
    """A file's error names its line; a workflow in Python has none."""
    file.write_text(FILE.replace("REF", "./nowhere"), encoding="utf-8")
    with pytest.raises(ModelReferenceError, match=r"there is no \./nowhere") as caught:
        Workflow.from_yaml(file).load()
    assert str(caught.value).startswith(f"{file}:3:17: models.small: ")
    with pytest.raises(ModelReferenceError) as caught:
        in_python("./nowhere").load()
    assert str(caught.value).startswith("there is no ./nowhere")


def test_an_edge_that_cannot_be_served_is_found_by_line(file: Path, tmp_path: Path) -> None:
    """What the plan refuses stands in the file; an edge added in Python stands in none."""
    other = stored_model(tmp_path / "other", seed=1)
    text = file.read_text(encoding="utf-8").replace("models: {", f"models: {{other: {other.ref}, ")
    text = text.replace("solver:\n    model: small", "solver:\n    model: other")
    refused = text.replace("repair: {sink: 2}", "fallback: error")
    file.write_text(refused, encoding="utf-8")
    with pytest.raises(WorkflowError, match="other weights") as caught:
        Workflow.from_yaml(file).plan()
    assert str(caught.value).startswith(f"{file}:12:41: edges[0].channel: ")
    file.write_text(text.partition("edges:")[0], encoding="utf-8")
    added = Workflow.from_yaml(file).connect(
        "reader", "solver", "same_model_cache", fallback="error"
    )
    with pytest.raises(WorkflowError, match="other weights") as caught:
        added.plan()
    assert str(caught.value).startswith("edges[0].channel: ")


def test_a_plan_takes_some_of_the_inputs(model: LocalModel) -> None:
    """Tokens are known where a prompt reads given inputs alone; wrong inputs are refused."""
    flow = in_python(model)
    (full,) = flow.plan(**GIVEN).edges
    assert full.tokens
    assert [edge.tokens for edge in flow.plan(document=DOCUMENT).edges] == [full.tokens]
    assert [edge.tokens for edge in flow.plan(question=QUESTION).edges] == [None]
    assert [edge.tokens for edge in flow.plan().edges] == [None]
    with pytest.raises(InputError, match="did you mean 'document'"):
        flow.plan(documnt=DOCUMENT)
    with pytest.raises(InputError, match="not of type text"):
        flow.plan(document=7)
    with pytest.raises(InputError, match="'question' is missing"):
        flow.run(document=DOCUMENT)


def test_a_plan_takes_inputs_as_a_mapping(model: LocalModel) -> None:
    """`plan` takes a mapping as well as names, and says so of anything else."""
    flow = in_python(model)
    assert flow.plan(GIVEN).edges == flow.plan(**GIVEN).edges
    with pytest.raises(InputError, match="stands where inputs stand"):
        flow.plan(["who?"])  # type: ignore[arg-type]
