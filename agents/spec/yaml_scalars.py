"""Plain scalars of YAML 1.2's core schema: null, booleans, numbers and text."""

import re
from typing import Any

from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

_SCALARS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("null", re.compile(r"~|null|Null|NULL|")),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE")),
    ("int", re.compile(r"[-+]?[0-9]{1,40}|0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}")),
    (
        "float",
        re.compile(
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
            r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
        ),
    ),
)


def resolve(text: str) -> tuple[str, object]:
    """Return the core type (``int``, ``str``, …) and the value of a plain scalar."""
    for kind, pattern in _SCALARS:
        if pattern.fullmatch(text):
            return kind, _convert(kind, text)
    return "str", text


def _convert(kind: str, text: str) -> object:
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return None


def styled(value: Any) -> Any:
    """Plain data with each text in the form that is read best and comes back as it was."""
    if isinstance(value, dict):
        return {styled(key): styled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [styled(item) for item in value]
    if not isinstance(value, str):
        return value
    if _is_block(value):
        return LiteralScalarString(value)
    if resolve(value)[0] != "str" or not value.isprintable():
        return DoubleQuotedScalarString(value)
    return value


def _is_block(text: str) -> bool:
    """Tell whether text comes back from a block of lines exactly as it was."""
    lines = text.removesuffix("\n").split("\n")
    return (
        "\n" in text
        and all(line.isprintable() and not line.endswith(" ") for line in lines)
        and lines[0][:1].strip() != ""
        and lines[-1] != ""
    )
