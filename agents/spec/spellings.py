"""Other ways to write a value in a workflow file: ``none``, one string for a list, a bare ref."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True, eq=False)
class Spelling:
    """A further way to write a value, turned into the usual one before it is checked.

    Attributes:
        convert: Turns this spelling into the usual one, and leaves anything else as it is.
        schema: JSON schema of this spelling; empty where the usual one's covers it.
    """

    convert: Callable[[object], object]
    schema: Mapping[str, object]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.convert, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        usual = handler(schema)
        if not self.schema:
            return usual
        choices = usual["anyOf"] if set(usual) == {"anyOf"} else [usual]
        return {"anyOf": [*choices, dict(self.schema)]}


def _none_word(value: object) -> object:
    return None if value == "none" else value


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _strings(value: object) -> object:
    return (value,) if isinstance(value, str) else _tuple(value)


NONE_WORD = Spelling(_none_word, {"const": "none"})
LIST = Spelling(_tuple, {})
STRINGS = Spelling(_strings, {"type": "string", "minLength": 1})


def bare(key: str, description: str) -> Spelling:
    """Return the spelling of a mapping as a bare string, which is the value of ``key``."""

    def convert(value: object) -> object:
        return {key: value} if isinstance(value, str) else value

    return Spelling(convert, {"type": "string", "description": description})


def by_kind(schema: Any) -> Any:
    """A JSON schema that looks at a mapping as a mapping alone, where it may be something else too.

    An ``anyOf`` that fails says nothing of its choices: a key misspelt in a mapping would be "not
    valid under any of the given schemas". With ``if``, a checker names the key.
    """
    if isinstance(schema, list):
        return [by_kind(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: by_kind(value) for key, value in schema.items()}
    choices = parts.get("anyOf", [])
    mappings = [choice for choice in choices if _is_mapping(choice)]
    if len(mappings) != 1:
        return parts
    del parts["anyOf"]
    others = _folded([choice for choice in choices if choice is not mappings[0]])
    return {**parts, "if": {"type": "object"}, "then": mappings[0], "else": others}


def _is_mapping(choice: Mapping[str, Any]) -> bool:
    """Whether a choice is a mapping; the parts of a file, which are referred to, all are."""
    return "$ref" in choice or choice.get("type") == "object"


def _folded(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """Choices as one, single values as a list of them, which a checker can print."""
    values: list[Any] = []
    others = []
    for choice in choices:
        if choice == {"type": "null"}:
            values.append(None)
        elif set(choice) == {"const"}:
            values.append(choice["const"])
        else:
            others.append(choice)
    others += [{"enum": values}] if values else []
    return others[0] if len(others) == 1 else {"anyOf": others}
