"""What can be read of a workflow that has mistakes, so that the rest of it is checked too.

Every value that is wrong by itself is left out, and a misspelt key counts as the one that it is
close to. What follows from what was left out is not told: that would be noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from unspoken.agents.spec.problems import closest
from unspoken.agents.spec.shape import AnswerSchema
from unspoken.agents.spec.spec import (
    AgentSpec,
    EdgeSpec,
    GenerateSpec,
    InputSpec,
    McpServerSpec,
    ModelSpec,
    WorkflowSpec,
)
from unspoken.agents.spec.yaml_reader import Path

_SECTIONS: Mapping[str, type[BaseModel]] = {
    "models": ModelSpec,
    "inputs": InputSpec,
    "agents": AgentSpec,
    "mcp_servers": McpServerSpec,
}
_SHORT = {"models": "ref", "inputs": "type"}
_NEEDED = ("model", "prompt", "from", "to")
_READ = frozenset(
    {*_NEEDED, "system", "for_each", "when", "loop", "share", "ref", "type", "generate"}
)
_ROUNDS = 4
"""How often a part is cleared of what is wrong; what stands on something else takes two rounds."""


@dataclass(frozen=True, kw_only=True)
class Salvaged:
    """A workflow without its mistakes, which only checks may read.

    Attributes:
        spec: Its parts; nothing checked that they are right.
        whole_edges: Whether every edge stands in it with its ends, so that paths can be followed.
    """

    spec: WorkflowSpec
    whole_edges: bool


def salvage(data: Mapping[str, Any]) -> Salvaged | None:
    """The workflow of plain data that has mistakes; None where too little of it can be read."""
    data = _renamed(data, WorkflowSpec)
    sections: dict[str, Any] = {}
    for name, model in _SECTIONS.items():
        entries = data.get(name, {})
        if not isinstance(entries, Mapping) or (name == "agents" and not entries):
            return None
        short = _SHORT.get(name, "")
        sections[name] = {
            key: _part(model, {short: value} if isinstance(value, str) else value)
            for key, value in entries.items()
        }
    given, outputs = data.get("edges", ()), data.get("outputs", {})
    if not isinstance(given, list | tuple) or not isinstance(outputs, Mapping):
        return None
    edges = [_part(EdgeSpec, edge) for edge in given]
    sections["edges"] = tuple(edges)
    sections["outputs"] = {key: text for key, text in outputs.items() if isinstance(text, str)}
    return Salvaged(
        spec=WorkflowSpec.model_construct(**{"name": "", **sections}),
        whole_edges=all(edge.from_ and edge.to for edge in edges),
    )


def _part(model: type[BaseModel], data: object) -> Any:
    """One part of a file, less what is wrong in it."""
    kept = dict(data) if isinstance(data, Mapping) else {}
    for _ in range(_ROUNDS):
        try:
            return _with_schema(model.model_validate(kept, by_alias=True, by_name=False), data)
        except ValidationError as error:
            for item in error.errors(include_url=False, include_context=False):
                kept = _mended(kept, tuple(item["loc"]), str(item["type"]), model)
    needed: dict[str, Any] = dict.fromkeys(set(_NEEDED) & set(_names(model)), "")
    return model.model_construct(None, **needed)


def _mended(
    data: Mapping[str, Any], path: Path, kind: str, model: type[BaseModel]
) -> dict[str, Any]:
    """Data without the value at a path, or with a text that is empty where one is needed."""
    if not path:  # Two keys do not go together: those that others read are enough.
        return {name: value for name, value in data.items() if name in _READ}
    key, inner = str(path[0]), data.get(str(path[0]))
    if isinstance(inner, Mapping) and len(path) > 1:
        if kind == "extra_forbidden" and key == "generate":
            return {**data, key: _renamed(inner, GenerateSpec)}
        if path[1] in inner:
            return {**data, key: {name: inner[name] for name in inner if name != path[1]}}
    if kind == "extra_forbidden":
        return _renamed(data, model)
    others = {name: value for name, value in data.items() if name != key}
    stand_in = {"ref": "?", "type": "list", **dict.fromkeys(_NEEDED, "")}  # a list fits any use
    return {**others, key: stand_in[key]} if key in stand_in else others


def _names(model: type[BaseModel]) -> list[str]:
    """The keys of a part, as a file writes them."""
    return [str(info.validation_alias or key) for key, info in model.model_fields.items()]


def _renamed(data: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """A mapping whose misspelt keys are the keys that they are close to; other unknown ones go."""
    names = _names(model)
    renamed = {key: value for key, value in data.items() if key in names}
    for key, value in data.items():
        close = "" if key in names else closest(str(key), names)
        if close:
            renamed.setdefault(close, value)
    return renamed


def _with_schema(part: Any, data: object) -> Any:
    """An agent that answers in data still does where its schema, or workflow, was left out."""
    if not isinstance(part, AgentSpec) or not isinstance(data, Mapping) or part.answers:
        return part
    asked = data.get("generate")
    nested = "workflow" in data and part.workflow is None
    if not nested and not (isinstance(asked, Mapping) and "schema" in asked):
        return part
    anything = GenerateSpec.model_construct(schema_=AnswerSchema("{}"))
    return part.model_copy(update={"generate": anything})
