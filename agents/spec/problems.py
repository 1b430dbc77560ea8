"""What pydantic finds wrong, in sentences for people."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from unspoken.agents.spec.spec import (
    AgentSpec,
    EdgeSpec,
    GenerateSpec,
    InputSpec,
    McpServerSpec,
    ModelSpec,
    Repair,
    WorkflowSpec,
)
from unspoken.agents.spec.yaml_reader import Path, path_text
from unspoken.channels.errors import Problem

KEY = "[key]"  # pydantic's last step in the path of an error about a dict's key

_Finding = tuple[str, str, str]  # found, expected, fix


def listed(names: Iterable[str]) -> str:
    """Write candidates as ``a, b or c``."""
    every = list(names)
    if len(every) > 24:
        return ", ".join(every[:20]) + f" or one of {len(every) - 20} more"
    return " or ".join([", ".join(every[:-1]), every[-1]] if len(every) > 1 else every)


def closest(name: str, candidates: Iterable[str]) -> str:
    """Return the candidate that a name is a misspelling of, or nothing where none is close."""
    if len(name) > 100:
        return ""
    close = difflib.get_close_matches(name, list(candidates)[:200], n=1, cutoff=0.7)
    return close[0] if close else ""


def suggest(name: str, candidates: Iterable[str]) -> str:
    """Return "did you mean 'share'?", or nothing where no candidate is close."""
    close = closest(name, candidates)
    return f"did you mean '{close}'?" if close else ""


def schema_problems(error: ValidationError, within: Path = ()) -> list[tuple[Path, Problem]]:
    """Return each of pydantic's findings with its path.

    The path of a finding about a key ends in the key itself, and `Problem.where` shows it.
    """
    problems = []
    for item in error.errors(include_url=False):
        path: Path = tuple(item["loc"])
        key = path and path[-1] == KEY
        found, expected, fix = _finding(
            item["type"], (*within, *path), item["input"], item.get("ctx", {})
        )
        if not found:
            found = str(item["msg"])
        shown = path[:-1] if key or item["type"] in ("missing", "extra_forbidden") else path
        if key:
            shown = shown[:-1]
        problems.append((path, Problem(found, path_text(shown), expected, fix)))
    return problems


def _finding(kind: str, path: Path, value: object, context: Mapping[str, Any]) -> _Finding:
    if kind == "unspoken":
        return context["found"], context["expected"], context["fix"]
    if kind == "missing":
        return _missing(path)
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "literal_error":
        return _not_a_choice(value, context["expected"])
    if kind in _BOUNDS:
        return f"{describe(value)} is out of range", _BOUNDS[kind](context), ""
    if kind in _TYPES:
        return _wrong_type(kind, value, path)
    return "", "", ""


def _missing(path: Path) -> _Finding:
    name = str(path[-1])
    info = {_alias(key, item): item for key, item in _model_at(path[:-1]).model_fields.items()}
    what = info[name].description if name in info else ""
    return f"key '{name}' is missing", f"{name}: {what}" if what else name, f"add '{name}:'"


def _unknown_key(path: Path) -> _Finding:
    name = str(path[-1])
    fields = _model_at(path[:-1]).model_fields
    names = [_alias(key, item) for key, item in fields.items()]
    return f"unknown key '{name}'", listed(names), suggest(name, names) or "remove it"


def _not_a_choice(value: object, expected: str) -> _Finding:
    choices = re.findall(r"'([^']*)'", expected)
    fix = suggest(value, choices) if isinstance(value, str) else ""
    return f"{describe(value)} is not one of the choices", listed(choices), fix


def _wrong_type(kind: str, value: object, path: Path) -> _Finding:
    fix = ""
    if path[-1:] == ("when",):
        fix = "a condition is text, as in when=\"'no' in critic.text\""
        return f"found {describe(value)}", _TYPES[kind], fix
    if kind == "model_type" and path[-1:] in (("generate",), ("repair",)):
        return f"found {describe(value)}", "a mapping of keys, or none", fix
    if kind == "string_type" and isinstance(value, bool | int | float):
        fix = f'put it in quotes: "{describe(value).removeprefix("the number ")}"'
    elif kind == "bool_type" and value in ("yes", "on", "no", "off"):
        fix = f"write {str(value in ('yes', 'on')).lower()}"
    elif kind in ("int_type", "float_type", "bool_type") and isinstance(value, str):
        fix = "remove the quotes" if re.fullmatch(r"[-+.\d]+|true|false", value) else ""
    return f"found {describe(value)}", _TYPES[kind], fix


_TYPES = {
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "string_unicode": "text of whole characters",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "dict_type": "a mapping of names",
    "model_type": "a mapping of keys",
    "tuple_type": "a list",
}

_BOUNDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "greater_than": lambda context: f"more than {context['gt']:g}",
    "greater_than_equal": lambda context: f"{context['ge']:g} or more",
    "less_than": lambda context: f"less than {context['lt']:g}",
    "less_than_equal": lambda context: f"{context['le']:g} or less",
}


def describe(value: object) -> str:
    """Say what a plain value is, shortly."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        shown = str(value) if abs(value) < 10**20 else f"{value:.3e}"
        return f"the number {shown}"
    if isinstance(value, str):
        return f"the text {value if len(value) <= 40 else value[:37] + '...'!r}"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def _alias(key: str, info: Any) -> str:
    return str(info.validation_alias or key)


def _model_at(path: Path) -> type[BaseModel]:
    """Return the model that describes the mapping at ``path``."""
    match path:
        case ("models", _):
            return ModelSpec
        case ("mcp_servers", _):
            return McpServerSpec
        case ("inputs", _):
            return InputSpec
        case ("agents", _):
            return AgentSpec
        case ("agents", _, "generate"):
            return GenerateSpec
        case ("edges", _):
            return EdgeSpec
        case ("edges", _, "repair"):
            return Repair
        case _:
            return WorkflowSpec
