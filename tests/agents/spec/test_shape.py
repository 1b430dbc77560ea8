"""What a workflow may say of an answer's shape."""

from pathlib import Path

import pytest

from unspoken.agents.workflow import Workflow
from unspoken.channels.errors import UnspokenError

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
