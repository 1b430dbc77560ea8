"""What each value of a workflow may be, and how it is written."""

from typing import Any

import jsonschema
import pytest
from bad_workflows import GOOD
from pydantic import ValidationError
from ruamel.yaml import YAML

from unspoken.agents.spec.loader import loads
from unspoken.agents.spec.spec import (
    AgentSpec,
    EdgeSpec,
    GenerateSpec,
    InputSpec,
    ModelSpec,
    Repair,
    WorkflowSpec,
    dump,
    json_schema,
)


def workflow(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "w",
        "models": {"m": "r"},
        "agents": {"a": {"model": "m", "prompt": "x"}},
    }
    return base | changes


def agent(**keys: Any) -> AgentSpec:
    return AgentSpec.model_validate({"model": "m", "prompt": "x", **keys})


def edge(**keys: Any) -> EdgeSpec:
    return EdgeSpec.model_validate({"from": "a", "to": "b", **keys})


def test_bare_strings_are_a_ref_and_a_type() -> None:
    """A model may be just its ref, an input just its type."""
    spec = WorkflowSpec.model_validate(workflow(inputs={"i": "integer"}))
    assert spec.models["m"] == ModelSpec(ref="r")
    assert spec.inputs["i"] == InputSpec(type="integer")


@pytest.mark.parametrize("none", [None, "none"])
@pytest.mark.parametrize("key", ["generate", "system", "for_each", "timeout"])
def test_none_may_be_written_as_a_word(key: str, none: object) -> None:
    """``none`` and null are equal wherever an agent's value may be missing."""
    assert getattr(agent(**{key: none}), key) is None


def test_defaults_are_those_of_the_design() -> None:
    """What is not written has the documented default."""
    assert agent().generate == GenerateSpec(max_new_tokens=128)
    assert edge().repair == Repair(sink=4)
    assert edge(repair="none").repair is None
    assert (edge().channel, edge().as_, edge().fallback, edge().loop) == (
        "auto",
        "user",
        "text",
        False,
    )


def test_one_stop_string_needs_no_list() -> None:
    """A bare string is a list of one stop string."""
    assert GenerateSpec.model_validate({"stop": "END"}).stop == ("END",)
    assert GenerateSpec.model_validate({"stop": ["a", "b"]}).stop == ("a", "b")


@pytest.mark.parametrize(
    ("generate", "expected"),
    [(None, "prompt"), (GenerateSpec(), "output")],
    ids=["reader", "writer"],
)
def test_share_follows_from_what_the_sharer_does(
    generate: GenerateSpec | None, expected: str
) -> None:
    """Without ``share`` a writer shares its output and a mere reader its prompt."""
    reader = AgentSpec(model="m", prompt="x", generate=generate)
    link = EdgeSpec(from_="a", to="b")
    spec = WorkflowSpec(name="w", models={"m": ModelSpec(ref="r")}, agents={"a": reader})
    assert spec.share_of(link) == expected
    assert spec.share_of(EdgeSpec(from_="a", to="b", share="context")) == "context"


@pytest.mark.parametrize(
    "generate",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": True},
        {"max_new_tokens": 1.0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": "0"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": 0},
        {"seed": "1"},
        {"stop": [""]},
        {"max_tokens": 1},
    ],
    ids=str,
)
def test_bad_generation_setting_is_refused(generate: dict[str, Any]) -> None:
    """Settings out of range or of another type are refused, never converted."""
    with pytest.raises(ValidationError):
        agent(generate=generate)


@pytest.mark.parametrize("share", [-0.1, 1.1, "half", True])
def test_a_share_that_is_none_is_refused(share: object) -> None:
    """The share of tokens repaired by deviation lies between 0 and 1."""
    assert edge(repair={"deviation": 0.2}).repair == Repair(sink=4, deviation=0.2)
    with pytest.raises(ValidationError):
        edge(repair={"deviation": share})


@pytest.mark.parametrize(
    "name", ["inputs", "item", "turn", "not", "a-b", "1a", "", "a b", "ä", "a\n"]
)
def test_name_that_templates_cannot_use_is_refused(name: str) -> None:
    """An agent's name is a word that templates do not use otherwise."""
    with pytest.raises(ValidationError):
        WorkflowSpec.model_validate(workflow(agents={name: {"model": "m", "prompt": "x"}}))


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_torch_devices_are_accepted(device: str) -> None:
    """A device is auto or a torch device with an optional index."""
    assert ModelSpec(ref="r", device=device).device == device


@pytest.mark.parametrize("shares", ["auto", "sequential", {"model.layers.0": "cuda:1", "": "cpu"}])
def test_a_device_may_be_a_map(shares: object) -> None:
    """A strategy, or a device for each module; it is written as it was read."""
    model = ModelSpec(ref="r", device={"map": shares})  # type: ignore[arg-type]
    assert model.model_dump(exclude_defaults=True) == {"ref": "r", "device": {"map": shares}}


@pytest.mark.parametrize(
    "device", [{"map": "best"}, {"maps": "auto"}, {"map": "auto", "x": 1}, {"map": {"a": "my gpu"}}]
)
def test_a_mapping_that_is_no_device_is_one_error(device: object) -> None:
    """The error is of the device, not of both things that it might have been."""
    with pytest.raises(ValidationError, match="is not a device") as caught:
        ModelSpec(ref="r", device=device)  # type: ignore[arg-type]
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("text", "a", 1),
        ("integer", 1, True),
        ("integer", 1, 1.5),
        ("number", 1.5, "1"),
        ("number", 1, float("inf")),
        ("boolean", False, 0),
        ("list", [1], "a"),
    ],
)
def test_default_is_of_the_input_type(kind: str, good: object, bad: object) -> None:
    """An input's default must be of its type."""
    assert not InputSpec.model_validate({"type": kind, "default": good}).required
    with pytest.raises(ValidationError):
        InputSpec.model_validate({"type": kind, "default": bad})


def test_dump_writes_only_what_differs_from_the_defaults() -> None:
    """Plain data of a workflow is as short as its author could have written it."""
    data = workflow(
        inputs={"i": "list", "j": "text"},
        agents={"a": {"model": "m", "prompt": "x", "generate": "none"}},
        edges=[{"from": "a", "to": "a", "loop": True, "repair": "none"}],
    )
    assert dump(WorkflowSpec.model_validate(data)) == data


def test_every_key_has_a_description() -> None:
    """Editors and documentation can explain every key."""
    schema = json_schema()
    for model in (schema, *schema["$defs"].values()):
        for key, value in model["properties"].items():
            assert value.get("description"), f"{model['title']}.{key}"


SCHEMA = jsonschema.Draft202012Validator(json_schema())


def test_json_schema_accepts_what_the_loader_accepts() -> None:
    """A file with bare strings and ``none`` passes the JSON schema, and so does its dump."""
    for data in (YAML(typ="safe", pure=True).load(GOOD), dump(loads(GOOD).spec)):
        assert [error.message for error in SCHEMA.iter_errors(data)] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": 1},
        {"agents": {"a": {"model": "m"}}},
        {"edges": [{"to": "a"}]},
        {"edges": [{"from": "a", "to": "a", "share": "words"}]},
        {"models": {"a-b": "r"}},
    ],
    ids=str,
)
def test_json_schema_refuses_what_the_loader_refuses(changes: dict[str, Any]) -> None:
    """Editors mark unknown and missing keys and wrong choices."""
    assert not SCHEMA.is_valid(workflow(**changes))
