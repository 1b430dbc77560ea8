"""Answers with a shape in a run: what templates, conditions and Python read of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, field_validator

from unspoken.agents import Agent, Workflow
from unspoken.agents.testing import ScriptedModel, tiny_model
from unspoken.channels import AgentError, WorkflowError

TEXT = """
name: tickets
models: {small: owner/model}
inputs: {text: text, rows: {type: list, default: []}}
agents:
  reader:
    model: small
    prompt: "{{ inputs.text }}"
    generate:
      schema:
        type: object
        properties: {team: {enum: [billing, other]}, n: {type: integer}, x-note: {type: string}}
        required: [team, n]
  clerk: {model: small, prompt: "For {{ reader.data.team }}: {{ reader.data.n + 1 }}"}
edges: [{from: reader, to: clerk, when: reader.data.n > 1}]
outputs: {team: "{{ reader.data.team }}"}
"""


class Ticket(BaseModel):
    """What a reader finds in a ticket."""

    team: str = Field(max_length=8)
    n: int = Field(ge=0, le=99)

    @field_validator("team")
    @classmethod
    def _no_shouting(cls, team: str) -> str:
        if team.isupper():
            raise ValueError("do not shout")
        return team


def tickets(tmp_path: Path, text: str = TEXT, **answers: Any) -> tuple[Workflow, ScriptedModel]:
    file = tmp_path / "tickets.yaml"
    file.write_text(text, encoding="utf-8")
    model = ScriptedModel({"clerk": "done", **answers})
    return Workflow.from_yaml(file, models={"small": model}), model


def test_prompts_conditions_and_outputs_read_data(tmp_path: Path) -> None:
    """As plain data; a prompt that reads some of it reads no words besides."""
    flow, model = tickets(tmp_path, reader='{"team":"other","n":2}')
    result = flow.run(text="help")
    assert result["reader"].data == {"team": "other", "n": 2}
    assert result.outputs == {"team": "other"}
    assert (
        model.prompts["clerk"][0].count("other") == 1
        and "For other: 3" in model.prompts["clerk"][0]
    )
    assert (
        tickets(tmp_path, reader='{"team": "other", "n": 1}')[0].run(text="x")["clerk"].text == ""
    )


def test_python_reads_instances_of_the_model(tmp_path: Path) -> None:
    """A pydantic model is the schema, and its instance the data; so it is for each item."""
    answers = ScriptedModel({"reader": ['{"team": "a", "n": 1}', '{"team": "b", "n": 2}']})
    one = Agent("reader", answers, prompt="{{ inputs.text }}", generate={"schema": Ticket})
    assert Workflow("w", [one]).run(text="x")["reader"].data == Ticket(team="a", n=1)
    each = Agent(
        "reader", answers, prompt="{{ item }}", generate={"schema": Ticket}, for_each="inputs.rows"
    )
    flow = Workflow("w", [each], outputs={"n": "{{ reader.data[1].n }}"})
    result = flow.run(rows=["x", "y"])
    assert result["reader"].data == [Ticket(team="a", n=1), Ticket(team="b", n=2)]
    assert result.outputs == {"n": "2"}


def test_a_type_that_refuses_an_answer_fails_the_turn() -> None:
    """What a schema cannot say, a validator does."""
    model = ScriptedModel({"reader": '{"team": "A", "n": 1}'})
    reader = Agent("reader", model, prompt="x", generate={"schema": Ticket})
    with pytest.raises(AgentError, match="do not shout"):
        Workflow("w", [reader]).run()


def test_an_answer_that_ended_too_soon_fails_the_turn() -> None:
    """Nobody reads half of an answer."""
    model = ScriptedModel({"reader": json.dumps({"team": "abcdefg", "n": 1})})
    reader = Agent("reader", model, prompt="x", generate={"schema": Ticket, "max_new_tokens": 21})
    with pytest.raises(AgentError, match="not what its schema says") as error:
        Workflow("w", [reader]).run()
    assert "max_new_tokens (21)" in error.value.fix


@pytest.mark.parametrize(
    ("old", "new", "message", "line"),
    [
        ("data.team }}: ", "data.tema }}: ", "'reader.data.tema' is not in the schema", 14),
        ("reader.data.n > 1", "clerk.data > 1", "cannot be read here", 15),
        ("outputs: {team: \"{{ reader", "outputs: {team: \"{{ clerk", "answers in words", 16),
        ("type: integer", "type: whole", "Invalid type: whole", 10),
        ("type: integer", "not: {}", "Unimplemented keys", 10),
    ],
)  # fmt: skip
def test_what_no_answer_has_is_found_before_a_run(
    tmp_path: Path, old: str, new: str, message: str, line: int
) -> None:
    """With the line of the file."""
    assert old in TEXT
    with pytest.raises(WorkflowError, match=message) as error:
        tickets(tmp_path, TEXT.replace(old, new, 1))
    assert error.value.problems[0].line == line


def test_a_budget_without_room_for_an_answer_is_refused(tmp_path: Path) -> None:
    """Before the run, with the place in the file."""
    flow, _ = tickets(
        tmp_path, TEXT.replace("      schema:", "      max_new_tokens: 9\n      schema:")
    )
    with pytest.raises(WorkflowError, match=r"takes 2\d tokens and more") as error:
        flow.run(text="x")
    assert error.value.problems[0].line == 11


def test_a_skipped_agent_has_no_data(tmp_path: Path) -> None:
    """Its data prints nothing, however deep it is asked for."""
    text = (
        TEXT.replace("outputs: {team:", "outputs: {d: '[{{ late.data.n.x }}]', team:")
        .replace("  clerk:", "  late: {model: small, prompt: x, generate: {schema: {}}}\n  clerk:")
        .replace("edges: [", "edges: [{from: clerk, to: late}, ")
    )
    flow, _ = tickets(tmp_path, text, reader='{"team": "other", "n": 0}')
    assert flow.run(text="x").outputs["d"] == "[]"


def test_a_model_of_noise_answers_in_shape() -> None:
    """At temperature 1, with drafts and beside other turns; what must come is not sampled."""
    model = tiny_model()
    settings = {"schema": Ticket, "temperature": 1.0, "max_new_tokens": 48, "seed": 1}
    noise = Agent("noise", model, prompt="{{ item }}", generate=settings, for_each="inputs.rows")
    greedy = Agent(
        "greedy", model, prompt="a b a b", generate={"schema": Ticket, "max_new_tokens": 90}
    )
    result = Workflow("w", [noise, greedy]).run(rows=["x", "y", "z"])
    for ticket in (*result["noise"].data, result["greedy"].data):
        assert isinstance(ticket, Ticket)
    for turn in result.report.agents["noise"]:
        assert turn.forwards < turn.generated_tokens and turn.turns_per_forward > 1


def test_a_file_keeps_the_schema() -> None:
    """Written out and read again it is the same, though the class is not in it."""
    from unspoken.agents.spec.loader import dumps, loads

    reader = Agent("reader", "owner/model", prompt="x", generate={"schema": Ticket})
    spec = Workflow("w", [reader]).spec
    assert loads(dumps(spec)).spec == spec
