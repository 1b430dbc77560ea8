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
