"""What several parts of a file share: merge keys, and keys that begin with ``x-``."""

import jsonschema
import pytest

from unspoken.agents.spec.loader import dumps, loads
from unspoken.agents.spec.spec import GenerateSpec, dump, json_schema
from unspoken.channels.errors import WorkflowError

SHARED = """\
name: shared
x-defaults: &defaults
  model: small
  generate: {max_new_tokens: 8}
x-calm: &calm {memory: turn, generate: {max_new_tokens: 9}, x-note: calm}
models: {small: embedded:smollm2-135m-instruct}
agents:
  north: {<<: *defaults, prompt: north}
  south:
    generate: none
    <<: *defaults
    prompt: south
    x-note: {anything: [at, all]}
  east: {<<: [*calm, *defaults], prompt: east}
  west: {<<: {model: small}, prompt: west, x-note: none}
"""


def test_merge_keys_take_in_what_a_mapping_does_not_have() -> None:
    """A key of one's own wins wherever it stands, and of several mappings the first."""
    agents = loads(SHARED).spec.agents
    assert [agents[name].model for name in agents] == ["small"] * 4
    assert agents["north"].generate == GenerateSpec(max_new_tokens=8)
    assert agents["south"].generate is None
    assert (agents["east"].memory, agents["east"].generate) == (
        "turn",
        GenerateSpec(max_new_tokens=9),
    )


def test_what_is_merged_stands_where_it_was_written() -> None:
    """A mistake in shared defaults is found at its line."""
    loaded = loads(SHARED, "flow.yaml")
    assert loaded.locate("agents.north.generate.max_new_tokens").line == 4
    assert loaded.locate("agents.south.generate").line == 10
    with pytest.raises(WorkflowError) as caught:
        loads(SHARED.replace("  model: small\n", "  model: smal\n", 1), "flow.yaml")
    assert {problem.line for problem in caught.value.problems} == {3}


def test_keys_that_begin_with_x_are_the_user_s_own() -> None:
    """They are passed over in every part; among names they are names, and refused."""
    assert "x-defaults" not in dumps(loads(SHARED).spec)
    data = {"x-a": 1, **dump(loads(SHARED).spec)}
    data["agents"]["north"]["x-b"] = {}
    jsonschema.Draft202012Validator(json_schema()).validate(data)
    with pytest.raises(WorkflowError, match="'x-north' cannot be a name"):
        loads(SHARED.replace("  north:", "  x-north:"))


def test_a_quoted_merge_key_is_a_key() -> None:
    """Only the plain word merges."""
    with pytest.raises(WorkflowError, match="unknown key '<<'"):
        loads(SHARED.replace("{<<: *defaults", '{"<<": *defaults, model: small'))


def test_a_merge_goes_no_further_than_the_limits() -> None:
    """Mappings that merge mappings that merge count like any others."""
    lines = ["x0: &x0 {" + ", ".join(f"k{n}: 1" for n in range(100)) + "}"]
    lines += [f"x{n}: &x{n} {{<<: [*x{n - 1}, *x{n - 1}, *x{n - 1}]}}" for n in range(1, 12)]
    with pytest.raises(WorkflowError, match="more than"):
        loads("\n".join(lines))
