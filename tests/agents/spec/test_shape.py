"""What a workflow may say of an answer's shape."""

from pathlib import Path
from typing import Any

import pytest

from unspoken.agents import Agent
from unspoken.agents.workflow import Workflow
from unspoken.channels.errors import UnspokenError, WorkflowError

FILE = """
name: shaped
models: {small: embedded:smollm2-135m-instruct}
agents:
  one:
    model: small
    prompt: Write.
    generate: {schema: "__import__('pathlib').Path('PLACE').touch()"}
"""


def test_a_schema_in_a_file_is_no_python(tmp_path: Path) -> None:
    """A string is refused, and nobody evaluates it."""
    place, file = tmp_path / "made", tmp_path / "workflow.yaml"
    file.write_text(FILE.replace("PLACE", str(place)))
    with pytest.raises(UnspokenError, match="the schema is"):
        Workflow.from_yaml(file)
    assert not place.exists()


@pytest.mark.parametrize(
    ("default", "fits"),
    [('{"n":3}', True), ("n/a", False), ('{"n": "3"}', False), ('{"n": 3, "m": 1}', False)],
)
def test_a_default_is_an_answer_of_the_schema(default: str, fits: bool) -> None:
    """What reads the data of a turn that failed finds some."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    settings: dict[str, Any] = {"generate": {"schema": schema}, "on_error": "default"}
    if fits:
        Agent("a", "owner/m", prompt="x", default=default, **settings)
        return
    with pytest.raises(WorkflowError, match="is no answer of the agent's schema"):
        Agent("a", "owner/m", prompt="x", default=default, **settings)
