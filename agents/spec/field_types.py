"""The types that values in a workflow file have, each with its own check."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BeforeValidator, Field, Strict, WithJsonSchema
from pydantic_core import PydanticCustomError

from unspoken.agents.prompts.chat_template import GIVEN
from unspoken.channels.sizes import SIZE, parse_bytes

_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
# Names that templates use for something else, and words of the template language.
_RESERVED = frozenset(
    {"inputs", "item", "turn", "self", "loop", "range", "dict"}
    | {"true", "false", "none", "True", "False", "None", "and", "or", "not", "in", "is"}
    | {"if", "elif", "else", "for", "set", "block", "macro", "call", "filter"}
)


def wrong(found: str, expected: str, fix: str = "") -> NoReturn:
    """Refuse a value: what was found, what was expected and how to fix it."""
    context = {"found": found, "expected": expected, "fix": fix}
    raise PydanticCustomError("unspoken", "{found}", context)


def _as_name(text: str) -> str:
    word = re.sub(r"[^A-Za-z0-9_]+", "_", text)
    return word if re.match("[A-Za-z_]", word) else f"_{word}"


def _check_name(name: str) -> str:
    if not re.fullmatch(_NAME, name):
        wrong(
            f"{name!r} cannot be a name",
            "letters, digits and underscores, not starting with a digit",
            f"templates refer to it as a word; write '{_as_name(name)}'",
        )
    return name


def _check_agent_name(name: str) -> str:
    if name in _RESERVED:
        wrong(
            f"{name!r} cannot be an agent's name",
            "a name that templates do not use otherwise",
            f"rename the agent, for example to '{name.lower()}_agent'",
        )
    return _check_name(name)


def _check_argument(name: str) -> str:
    if name in GIVEN:
        wrong(
            f"{name!r} cannot be an argument of a chat template",
            "an argument that the template reads besides the turns, such as enable_thinking",
            "remove it",
        )
    return _check_name(name)


def _as_bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except ValueError:
        wrong(f"{value[:40]!r} is no size", "a number of bytes, or a size such as 800MB or 2GB")


_BYTES = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": SIZE}]}

Text = Annotated[str, Strict()]
NonEmpty = Annotated[str, Strict(), Field(min_length=1)]
Name = Annotated[str, Strict(), AfterValidator(_check_name)]
AgentName = Annotated[str, Strict(), AfterValidator(_check_agent_name)]
ArgumentName = Annotated[str, Strict(), AfterValidator(_check_argument)]
Bytes = Annotated[int, Strict(), Field(ge=1), BeforeValidator(_as_bytes), WithJsonSchema(_BYTES)]
Count = Annotated[int, Strict(), Field(ge=1)]
Whole = Annotated[int, Strict(), Field(ge=0)]
Flag = Annotated[bool, Strict()]
Seconds = Annotated[float, Strict(), Field(gt=0)]
Fraction = Annotated[float, Strict(), Field(ge=0, le=1)]

Ask = Literal["approve", "edit", "answer"]
"""What a person is asked for."""

KEYS_ARE_NAMES: dict[str, Any] = {"propertyNames": {"pattern": _NAME}}
