"""Braces and comments that people write in prompts, and what is said of them."""

import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unspoken.agents.cli.main import app
from unspoken.agents.prompts.jinja import render
from unspoken.agents.spec.loader import loads
from unspoken.agents.spec.references import comment_warnings
from unspoken.channels.errors import WorkflowError

FILE = """\
name: braces
models:
  small: embedded:smollm2-135m-instruct
inputs:
  page: text
agents:
  painter:
    model: small
    prompt: |
      Answer with JSON such as {"score": {"value": 1}}.
      The page: {{ inputs.page }}
      LINE
"""


def workflow(line: str) -> str:
    """A file whose prompt ends in a line, the twelfth."""
    return FILE.replace("LINE", line)


def test_json_passes_as_it_is() -> None:
    """Braces that open no tag are words."""
    prompt = loads(workflow("40 % of {x} and }}.")).spec.agents["painter"].prompt
    assert '{"score": {"value": 1}}.' in render(prompt, {"inputs": {"page": "p"}})


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("Its background is {#fff} at 40%.", "'{#' begins a comment"),
        ("It is {%} full.", "'{%' begins a statement"),
        ("It is {% of 40", "'{%' begins a statement"),
        ("Write {{", "'{{' begins an expression"),
        ("Write {{ }}", "'{{' begins an expression"),
        ("Write {{ inputs.page | uper }}", "No filter named 'uper'"),
        ("Write {{ inputs.pag }}", "'inputs.pag' is not defined"),
        ("Write {{ painter.text }}", "painter"),
    ],
)
def test_an_error_names_the_mark_and_the_line_of_the_prompt(line: str, found: str) -> None:
    """Its line is that of the file."""
    with pytest.raises(WorkflowError) as caught:
        loads(workflow(line))
    (problem,) = caught.value.problems
    assert found in problem.message
    assert (problem.line, problem.column) == (12, 7)


@pytest.mark.parametrize("mark", ["{#", "{%", "{{"])
def test_the_way_out_that_an_error_names_works(mark: str) -> None:
    """The mark in quotes, or raw text, is printed as it is."""
    with pytest.raises(WorkflowError) as caught:
        loads(workflow(f"a {mark} b"))
    (problem,) = caught.value.problems
    assert f"{{{{ '{mark}' }}}}" in problem.fix
    assert "{% raw %}" in problem.fix
    assert render(f"a {{{{ '{mark}' }}}} b", {}) == f"a {mark} b"
    assert render(f"a {{% raw %}}{mark} b{{% endraw %}}", {}) == f"a {mark} b"


def test_a_comment_that_swallows_words_is_warned_of(tmp_path: Path) -> None:
    """`validate` names the comment with its line, and the file stays valid."""
    file = tmp_path / "flow.yaml"
    file.write_text(workflow("Be kind {# tone: dry #} and short."))
    result = CliRunner().invoke(app, ["validate", str(file)])
    assert result.exit_code == 0
    assert "'{# tone: dry #}' is a comment" in result.stderr
    assert f"{file}:12:7" in result.stderr
    assert "valid" in result.stdout


@pytest.mark.parametrize(
    "line", ["{#- meant -#}", "{% raw %}{# tone #}{% endraw %}", "{{ '{# #}' }}"]
)
def test_no_warning_where_nothing_is_lost(line: str) -> None:
    """A comment with dashes is meant, and what is printed is no comment."""
    assert not list(comment_warnings(loads(workflow(line)).spec))


def test_lines_are_of_the_value_where_it_is_no_block() -> None:
    """Quoted text may be folded: its lines are not the file's."""
    folded = textwrap.dedent(
        """\
        name: a
        models: {small: embedded:smollm2-135m-instruct}
        agents:
          one:
            model: small
            prompt: "a\\n\\nb {{ nothing }}"
        """
    )
    with pytest.raises(WorkflowError) as caught:
        loads(folded)
    assert caught.value.problems[0].line == 6
