"""Everything wrong with a file is told at once, and nothing that only follows from it."""

from pathlib import Path

import jsonschema
import pytest

from unspoken.agents.models.catalog import require_embedded
from unspoken.agents.spec.loader import load_workflow, loads
from unspoken.agents.spec.spec import json_schema
from unspoken.channels.errors import WorkflowError

TEXT = """\
name: all at once
models:
  small: embedded:smollm2-135m-instruct
inputs:
  document: text
  rows: list
agents:
  reader:
    model: small
    prompt: "{{ inputs.document }}"
  solver:
    model: small
    prompt: "{{ reader.text }}"
edges:
  - {from: reader, to: solver}
outputs:
  answer: "{{ solver.text }}"
"""


def told(*changes: tuple[str, str], text: str = TEXT) -> str:
    """What the loader says of the text with these changes."""
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    with pytest.raises(WorkflowError) as caught:
        loads(text, "flow.yaml", require_ref=require_embedded)
    return str(caught.value)


def test_keys_names_templates_and_models_are_told_together() -> None:
    """One reading names every mistake, whatever its kind."""
    said = told(
        ("smollm2-135m-instruct", "smollm2"),
        ('prompt: "{{ inputs.document }}"', 'prompt: "{{ inputs.documnt }}"\n    max_turn: 2'),
        ('model: small\n    prompt: "{{ reader', 'model: smal\n    prompt: "{{ topic'),
        ("to: solver", "to: solvr"),
    )
    assert "did you mean embedded:smollm2-135m-instruct?" in said
    assert "did you mean 'inputs.document'?" in said
    assert "unknown key 'max_turn'" in said
    assert "there is no model 'smal'" in said
    assert "there is no agent 'solvr'" in said
    assert "'topic.text' is not defined" in said


@pytest.mark.parametrize(
    "change",
    [
        ("inputs:", "input:"),
        ("agents:", "agent:"),
        ("edges:", "edegs:"),
        ("from: reader, to", "from: reader, too"),
        ("- {from: reader, to: solver}", "- reader to solver"),
        ('prompt: "{{ reader.text }}"', "promt: '{{ reader.text }}'"),
        ("model: small", "model: [small]"),
        ("small: embedded:smollm2-135m-instruct", "small: {reff: embedded:x}"),
        ("rows: list", "rows: lits"),
        ("model: small", "model: small\n    ask: edit\n    generate: none"),
    ],
    ids=lambda change: change[1].split("\n")[-1],
)
def test_what_follows_from_a_mistake_is_not_told(change: tuple[str, str]) -> None:
    """Only the key at fault is named, by which another may be missing."""
    said = told(change)
    for consequence in ("there is no", "is not defined", "cannot be read", "not a list input"):
        assert consequence not in said


def test_an_answer_keeps_its_data_though_its_schema_is_wrong() -> None:
    """A schema that is refused still makes the agent one that answers in data."""
    said = told(
        ("  solver:", "    generate: {schema: 3}\n  solver:"), ("reader.text", "reader.data.team")
    )
    assert "the schema is '3'" in said
    assert "answers in words" not in said


def test_a_bare_name_is_answered_with_what_to_declare() -> None:
    """`{{ topic }}`, as other template languages have it, is an input to declare."""
    said = told(("{{ inputs.document }}", "{{ topic }}"))
    assert "fix: declare 'topic' under 'inputs:' and write inputs.topic" in said


def test_a_misspelt_file_is_answered_with_the_nearest(tmp_path: Path) -> None:
    """Of the files beside it the closest is named."""
    for name in ("alpha.yaml", "workflow.yaml"):
        (tmp_path / name).write_text(TEXT)
    with pytest.raises(WorkflowError, match=r"did you mean .*workflow\.yaml\?"):
        load_workflow(tmp_path / "workflw.yml")


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("generate", {"max_tokns": 3}, "max_tokns"),
        ("retry", {"attemps": 3}, "attemps"),
        ("generate", 3, "3 is not one of"),
    ],
)
def test_the_json_schema_names_a_misspelt_key(key: str, value: object, named: str) -> None:
    """An editor shows the key, where a part may be a mapping or something else."""
    agent = {"model": "m", "prompt": "p", key: value}
    data = {"name": "n", "models": {"m": "r"}, "agents": {"a": agent}}
    errors = list(jsonschema.Draft202012Validator(json_schema()).iter_errors(data))
    assert [list(error.path) for error in errors] == [["agents", "a", key]]
    assert named in errors[0].message
