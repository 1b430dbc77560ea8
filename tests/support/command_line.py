"""The command line in this process: called, and what it prints read back."""

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from unspoken.agents.cli.main import app

_WORKFLOW = """\
name: pair
models: {{tiny: {model}}}
inputs: {{document: text, question: text}}
agents:
  reader: {{model: tiny, prompt: "{{{{ inputs.document }}}}", generate: none}}
  solver:
    model: tiny
    prompt: "the question is {{{{ inputs.question }}}}"
    generate: {{max_new_tokens: {tokens}}}
    timeout: {timeout}
edges:
  - {{from: reader, to: solver, share: prompt, repair: {{sink: 2}}}}
outputs:
  answer: "{{{{ solver.text }}}}"
"""

INPUTS = ("-i", "document=who is it that was on the document", "-i", "question=what is a key")


def call(*args: object, answer: str | None = None) -> Result:
    """Call ``unspoken``; `answer` is typed where it asks."""
    return CliRunner().invoke(app, list(map(str, args)), input=answer)


def done(*args: object) -> str:
    """Standard output of a call that succeeds."""
    result = call(*args)
    assert result.exit_code == 0, result.stderr
    return result.stdout


def refused(*args: object) -> str:
    """Standard error of a call that is refused with an error a person can act on."""
    result = call(*args)
    assert result.exit_code in (1, 2) and result.stdout == ""
    assert "error: " in result.stderr and "unexpected" not in result.stderr
    return result.stderr


def run_json(*args: object) -> dict[str, Any]:
    """The one JSON object that ``unspoken run --json`` prints."""
    result: dict[str, Any] = json.loads(done("run", *args, "--json"))
    return result


def write_workflow(folder: Path, model: Path, tokens: int = 6, timeout: str = "none") -> Path:
    """Write a reader and a solver on one model; they take `INPUTS`."""
    file = folder / "pair.yaml"
    text = _WORKFLOW.format(model=model, tokens=tokens, timeout=timeout)
    file.write_text(text, encoding="utf-8")
    return file
