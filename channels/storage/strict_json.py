"""Reading JSON that strangers wrote."""

import json
from typing import Any, NoReturn

LARGEST = 2**64

DEEPEST = 64
"""Most lists and objects within each other; a reader of deeper ones may run out of stack."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text that has one meaning, and that can be written again.

    Raises:
        ValueError: No JSON in UTF-8, a key that stands twice, a number that is not finite or an
            integer past 64 bits, half a character, or more than 64 lists and objects within each
            other.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        data = json.loads(
            text,
            parse_int=_bounded,
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_doubles,
        )
        _refuse_depth(data)
        json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it holds half a character") from None
    return data


def _bounded(digits: str) -> int:
    number = int(digits)
    if abs(number) > LARGEST:
        raise ValueError(f"the integer {digits[:20]}… is past 64 bits")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that stands twice, readers would take one or the other."""
    data: dict[str, Any] = {}
    for name, value in pairs:
        if name in data:
            raise ValueError(f"the key {name[:40]!a} stands twice")
        data[name] = value
    return data


def _refuse_depth(data: object) -> None:
    level: list[object] = [data]
    for _ in range(DEEPEST):
        inner: list[object] = []
        for value in level:
            if isinstance(value, dict):
                inner += (part for part in value.values() if isinstance(part, dict | list))
            elif isinstance(value, list):
                inner += (part for part in value if isinstance(part, dict | list))
        if not inner:
            return
        level = inner
    raise ValueError("it is nested too deeply")
