"""Workflow files: what loads, what does not, and where the finger points."""

import random
from pathlib import Path

import pytest
from bad_workflows import BAD_WORKFLOWS, GOOD, BadWorkflow
from hypothesis import given
from hypothesis import strategies as st

from unspoken.agents.spec.loader import dumps, load_workflow, loads
from unspoken.agents.spec.spec import AgentSpec, InputSpec, ModelSpec, WorkflowSpec
from unspoken.channels.errors import Problem, WorkflowError


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(WorkflowError) as caught:
        loads(text, "flow.yaml")
    return caught.value.problems


@pytest.mark.parametrize("bad", BAD_WORKFLOWS, ids=lambda bad: bad.name)
def test_bad_workflow_is_refused_at_its_line(bad: BadWorkflow) -> None:
    """A bad workflow is refused with its message, at the line at fault."""
    problems = problems_of(bad.text)
    matching = [problem for problem in problems if bad.message in str(problem)]
    assert matching, "\n".join(map(str, problems))
    assert matching[0].line == bad.line, str(matching[0])
    assert all(problem.file == "flow.yaml" and problem.column > 0 for problem in problems)


def test_one_mistake_gives_one_problem() -> None:
    """An unquoted template is reported once, not a second time as a wrong type."""
    text = GOOD.replace('"{{ inputs.document }}"', "{{ inputs.document }}")
    assert len(problems_of(text)) == 1


def test_tag_on_a_bare_value_gives_one_problem() -> None:
    """A forbidden tag is not reported a second time as a wrong choice."""
    assert len(problems_of(GOOD.replace("document: text", "document: !x y"))) == 1


def test_all_problems_of_the_schema_come_at_once() -> None:
    """Wrong values in several places are all reported, in the order of the file."""
    text = GOOD.replace("reader-solver", "7").replace("24", "x").replace("share:", "shar:")
    assert [problem.line for problem in problems_of(text)] == [1, 15, 21]


def test_all_problems_of_the_graph_come_at_once() -> None:
    """Wrong names in several places are all reported, in the order of the file."""
    text = GOOD.replace("inputs.document", "inputs.x").replace("to: critic", "to: judge")
    assert [problem.line for problem in problems_of(text)] == [10, 22]


def test_duplicate_key_does_not_hide_other_problems() -> None:
    """A duplicate key and a wrong value are reported together."""
    text = GOOD.replace("24", "x") + "name: again\n"
    assert [problem.line for problem in problems_of(text)] == [15, 26]


def test_unknown_key_is_located_at_the_key_and_value_at_the_value() -> None:
    """The column of an unknown key is the key's, that of a wrong value the value's."""
    edge = "  - {from: reader, to: solver, "
    (key,) = problems_of(GOOD.replace("share: prompt", "shar: prompt"))
    (value,) = problems_of(GOOD.replace("share: prompt", "share: promt"))
    assert key.column == len(edge) + 1
    assert value.column == len(edge + "share: ") + 1


def test_good_workflow_loads() -> None:
    """A good workflow becomes its specification, with short spellings resolved."""
    spec = loads(GOOD).spec
    assert spec.models["small"] == ModelSpec(ref="embedded:smollm2-135m-instruct")
    assert spec.agents["reader"].generate is None
    assert spec.inputs["rows"].default == ["a", "b"]
    assert [(edge.from_, edge.to, edge.loop) for edge in spec.edges] == [
        ("reader", "solver", False),
        ("solver", "critic", False),
        ("critic", "solver", True),
    ]


def test_words_of_yaml_1_1_stay_words() -> None:
    """``yes``, ``off`` and dates are text, as in YAML 1.2."""
    spec = loads(GOOD.replace("[a, b]", "[yes, off, 2020-01-01, 010]")).spec
    assert spec.inputs["rows"].default == ["yes", "off", "2020-01-01", 10]


def test_anchors_work_within_limits() -> None:
    """An anchor's value can be used again."""
    text = GOOD.replace("{max_new_tokens: 24}", "&few {max_new_tokens: 24}")
    text = text.replace('"Improve: {{ solver.text }}"', "Improve\n    generate: *few")
    spec = loads(text).spec
    assert spec.agents["critic"].generate == spec.agents["solver"].generate


def test_locate_falls_back_to_the_part_above() -> None:
    """A path that is not written in the file is located at its nearest parent."""
    loaded = loads(GOOD)
    assert loaded.locate("edges[0].from").line == 21
    assert loaded.locate("agents.critic.max_turns") == loaded.locate("agents.critic")
    assert loaded.locate("agents.critic").line == 17
    assert loaded.locate("nothing.at.all").line == 1


def test_file_loads_with_byte_order_mark(tmp_path: Path) -> None:
    """A file in UTF-8 loads, with or without a byte order mark."""
    path = tmp_path / "flow.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_workflow(path).spec == loads(GOOD).spec
    assert load_workflow(str(path)).file == str(path)


def test_invalid_utf8_is_located(tmp_path: Path) -> None:
    """A byte that is not UTF-8 is named with line and column."""
    path = tmp_path / "flow.yaml"
    path.write_bytes("name: ä\nmodels: é".encode() + b"\xff\n")
    with pytest.raises(WorkflowError, match="byte 0xff is not UTF-8") as caught:
        load_workflow(path)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (2, 10)


def test_missing_file_lists_its_neighbours(tmp_path: Path) -> None:
    """A file that does not exist is refused with the workflow files beside it."""
    (tmp_path / "flow.yaml").write_text(GOOD)
    with pytest.raises(WorkflowError, match=r"there is no file(.|\n)*flow\.yaml"):
        load_workflow(tmp_path / "flwo.yaml")


@pytest.mark.parametrize("source", ["", "a\0b", "x" * 5000])
def test_impossible_path_is_refused(source: str) -> None:
    """A path that the system refuses is a workflow error."""
    with pytest.raises(WorkflowError):
        load_workflow(source)


def test_large_file_is_refused(tmp_path: Path) -> None:
    """A file beyond the limit is refused before it is parsed."""
    path = tmp_path / "flow.yaml"
    path.write_text("name: " + "x" * 1024 * 1024)
    with pytest.raises(WorkflowError, match="larger than 1024 KiB"):
        load_workflow(path)


def test_random_bytes_in_a_file_are_refused(tmp_path: Path) -> None:
    """Bytes that mean nothing never raise anything but a workflow error."""
    path = tmp_path / "flow.yaml"
    for seed in range(100):
        path.write_bytes(random.Random(seed).randbytes(200))
        with pytest.raises(WorkflowError):
            load_workflow(path)


def test_dumps_of_good_workflow_reads_back() -> None:
    """A written workflow reads back equal, and writing it again gives the same text."""
    spec = loads(GOOD).spec
    assert loads(dumps(spec)).spec == spec
    assert dumps(loads(dumps(spec)).spec) == dumps(spec)


WORDS = st.sampled_from(
    ["null", "1e3", "0o7", "~", "", "yes", "- a", "a: b", "#", "|", "2020-01-01"]
)
TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30) | WORDS
PROSE = TEXTS.map(lambda text: text.replace("{", "("))  # no templates


@given(prompt=PROSE, system=st.none() | PROSE, description=TEXTS, default=st.none() | TEXTS)
def test_any_text_reads_back(
    prompt: str, system: str | None, description: str, default: str | None
) -> None:
    """Any text in a workflow survives being written and read."""
    spec = WorkflowSpec(
        name="w",
        description=description,
        models={"m": ModelSpec(ref="r")},
        inputs={"i": InputSpec(default=default)},
        agents={"a": AgentSpec(model="m", prompt=prompt, system=system)},
    )
    assert loads(dumps(spec)).spec == spec
