"""The shape of an answer: a JSON schema, checked when it is written down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_origin

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic_core import CoreSchema, core_schema

from unspoken.agents.spec.field_types import wrong

WRITTEN: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write an answer, that of Python's `json`: no budget is filled with space."""

_FIRST = ("type", "properties", "required")
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_VALUES = frozenset({"const", "default", "enum", "examples"})
_OPEN = frozenset({"additionalProperties", "unevaluatedProperties", "patternProperties"})

_MOST_REFERRED = 8
"""References in a row that are followed to see what an answer has."""


class AnswerSchema:
    """What an answer in JSON looks like; equal by its text.

    No dataclass, which pydantic would take apart where it writes a workflow out.

    Attributes:
        text: The JSON schema, as JSON. Objects have the properties that it names and no others,
            unless it says ``additionalProperties``.
        kind: The Python type that it was made of, which answers are read as; None for plain data.
    """

    __slots__ = ("kind", "text")

    def __init__(self, text: str, kind: Any = None) -> None:
        self.text, self.kind = text, kind

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AnswerSchema) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"AnswerSchema({self.text!r})"

    @classmethod
    def of(cls, value: object) -> AnswerSchema:
        """The schema of a mapping, or of a type that pydantic knows, such as a model's class."""
        if isinstance(value, cls):
            return value
        kind: Any = None
        schema: Any = value
        if not isinstance(value, Mapping):
            try:
                kind = _type(value)
                schema = TypeAdapter(kind).json_schema()
            except (TypeError, PydanticSchemaGenerationError, PydanticUserError):
                wrong(
                    f"the schema is {str(value)[:40]!r}",
                    "a JSON schema as a mapping; in Python, a pydantic model's class too",
                    "write schema: {type: object, properties: ...}",
                )
        try:
            text = json.dumps(_closed(schema), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            wrong(f"the schema is no JSON: {error}", "a JSON schema of plain values")
        checked = cls(text, kind)
        refused = refusal(checked.grammar)
        if refused:
            wrong(
                f"the schema cannot be kept to: {refused}",
                "a JSON schema of keywords that llguidance knows",
                "leave out what it does not know, and check the rest in a condition",
            )
        return checked

    @property
    def schema(self) -> dict[str, Any]:
        """The schema as plain data."""
        plain: dict[str, Any] = json.loads(self.text)
        return plain

    @property
    def grammar(self) -> str:
        """What an answer may be, for `unspoken.agents.shapes`."""
        from llguidance import LLMatcher

        return LLMatcher.grammar_from_json_schema(self.text, overrides=WRITTEN)

    def read(self, text: str) -> Any:
        """An answer's value: an instance of `kind`, or plain data.

        Raises:
            ValueError: It is no whole JSON, or the type refuses it.
        """
        return json.loads(text) if self.kind is None else TypeAdapter(self.kind).validate_json(text)

    def takes(self, text: str) -> bool:
        """Whether a text is an answer, however it is spaced; properties in the schema's order."""
        from llguidance import LLMatcher, LLTokenizer

        try:
            self.read(text)
            plain = json.dumps(json.loads(text), ensure_ascii=False)
        except ValueError:
            return False
        letters = list(plain.encode())
        matcher = LLMatcher(LLTokenizer("byte"), self.grammar, log_level=0)
        return matcher.try_consume_tokens(letters) == len(letters) and bool(matcher.is_accepting())

    def lacking(self, path: Sequence[str]) -> tuple[str, list[str]] | None:
        """The first name of a path that no answer has, and the names beside it.

        None where answers may have all of it, and where the schema does not tell.
        """
        root = self.schema
        part: Any = root
        for name in path:
            for _ in range(_MOST_REFERRED):
                if isinstance(part, dict) and "$ref" in part:
                    part = _referred(root, str(part["$ref"]))
            if isinstance(part, dict) and part.get("type") == "array" and name.isdigit():
                part = part.get("items")
                continue
            if not isinstance(part, dict) or part.get("type") != "object":
                return None
            known = part.get("properties", {})
            if name not in known:
                open_ended = part.get("additionalProperties", True) or "patternProperties" in part
                return None if open_ended else (name, list(known))
            part = known[name]
        return None

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.of,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: value.schema, when_used="json-unless-none"
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "object", "description": "A JSON schema."}


def regex_grammar(pattern: str) -> str:
    """What an answer may be that matches a pattern as a whole."""
    from llguidance import LLMatcher

    return LLMatcher.grammar_from_regex(pattern)


def refusal(grammar: str) -> str:
    """What is wrong with a grammar, on one line; empty where nothing is."""
    from llguidance import LLMatcher

    refused, told = LLMatcher.validate_grammar_with_warnings(grammar)
    return " ".join(" ".join(told).split())[:200] if refused else ""


def _closed(part: Any, *, names: bool = False, within_all: bool = False) -> Any:
    """A schema whose objects have the properties that they name; those of `allOf` add up.

    Its keywords stand in one order and without titles, so that equal schemas have equal texts.

    Args:
        part: A part of it.
        names: Whether its keys are names, whose order counts, and no keywords.
        within_all: Whether it stands in an `allOf`.
    """
    if isinstance(part, list | tuple):
        return [_closed(item, within_all=within_all) for item in part]
    if not isinstance(part, Mapping):
        return part
    within_all = within_all or "allOf" in part
    names_all = isinstance(part.get("properties"), Mapping) and not _OPEN & set(part)
    if names_all and not (names or within_all):
        part = {**part, "additionalProperties": False}
    closed = {}
    for key in part if names else sorted(set(part) - {"title"}, key=_place):
        keeps = key in _VALUES and not names
        inner = {"names": key in _NAMED and not names, "within_all": within_all}
        closed[key] = part[key] if keeps else _closed(part[key], **inner)
    return closed


def _place(keyword: str) -> tuple[int, str]:
    return (_FIRST.index(keyword) if keyword in _FIRST else len(_FIRST), keyword)


def _referred(root: dict[str, Any], reference: str) -> Any:
    part: Any = root
    for step in reference.removeprefix("#/").split("/"):
        part = part.get(step) if isinstance(part, dict) else None
    return part if isinstance(part, dict) else None


def _type(value: object) -> Any:
    """A type; pydantic would evaluate a string, which a file may have, as Python."""
    if isinstance(value, type) or get_origin(value) is not None:
        return value
    raise TypeError
