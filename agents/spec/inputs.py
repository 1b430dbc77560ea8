"""Input values, checked against the workflow."""

import re
from collections.abc import Iterator, Mapping

from unspoken.agents.spec.problems import describe, suggest
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import InputError

MOST_BYTES = 64 * 2**20
"""Bound of a file that is read for an input, and of the characters of all inputs together."""

MOST_VALUES = 1_000_000
MOST_DEPTH = 64
ON_COMMAND_LINE = "give each as -i NAME=VALUE, or -i NAME=@FILE to read a file"
_IN_PYTHON = "give each by its name, as in run(name=value)"
_BAD = re.compile("[\ud800-\udfff\0]")


def check_inputs(
    spec: WorkflowSpec, given: Mapping[str, object], *, partial: bool = False, how: str = _IN_PYTHON
) -> dict[str, object]:
    """The given values and the defaults of the others.

    Args:
        spec: The workflow.
        given: Values by name.
        partial: Leave out an input that is missing instead of refusing it.
        how: What an error says of how inputs are given.

    Raises:
        InputError: A value is missing, of another type, for no input, beyond the bounds, or text
            with a character that cannot be read; all are named.
    """
    wrong = []
    for name in given:
        if name not in spec.inputs:
            hint = suggest(name, spec.inputs)
            wrong.append(f"there is no input {name!r}" + (f" ({hint})" if hint else ""))
    values = {}
    for name, declared in spec.inputs.items():
        value = given.get(name, declared.default)
        if value is None and partial:
            continue
        if value is None:
            wrong.append(f"input {name!r} is missing")
        elif not declared.accepts(value):
            wrong.append(f"input {name!r} is {describe(value)}, not of type {declared.type}")
        values[name] = value
    if wrong:
        inputs = ", ".join(f"{name} ({declared.type})" for name, declared in spec.inputs.items())
        raise InputError(
            "; ".join(wrong), expected=f"inputs {inputs}" if inputs else "no inputs", fix=how
        )
    _check_text(values)
    return values


def _check_text(values: Mapping[str, object]) -> None:
    """Refuse text that no tokenizer reads, and more than a run can hold.

    Raises:
        InputError: The first of what is wrong.
    """
    characters = 0
    for count, (name, path, text) in enumerate(_texts(values), 1):
        characters += len(text)
        if count > MOST_VALUES or characters > MOST_BYTES:
            raise InputError(
                f"input {name!r} goes beyond what the inputs of a run may hold together",
                expected=f"at most {MOST_VALUES:,} values and {MOST_BYTES:,} characters",
                fix="run over parts of it",
            )
        bad = _BAD.search(text)
        if bad is not None:
            what = "a NUL character" if bad[0] == "\0" else "half of a surrogate pair"
            place = ("" if path == name else f"{path}, ") + f"character {bad.start() + 1}"
            raise InputError(
                f"input {name!r} holds {what} ({place})",
                expected="text of whole characters",
                fix="clean the text where it was cut or decoded, "
                "as with text.encode('utf-8', 'replace').decode()",
            )


def _texts(values: Mapping[str, object]) -> Iterator[tuple[str, str, str]]:
    """Every value in the inputs as (input, place in it, text); other values as empty text."""
    waiting: list[tuple[str, str, object, int]] = [
        (name, name, value, 0) for name, value in reversed(list(values.items()))
    ]
    while waiting:
        name, path, value, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise InputError(
                f"input {name!r} is nested more than {MOST_DEPTH} levels deep",
                fix="give a flat list",
            )
        parts: list[tuple[str, object]] = []
        if isinstance(value, list | tuple):
            parts = [(f"{path}[{n}]", part) for n, part in enumerate(value)]
        elif isinstance(value, Mapping):
            parts = [(f"{path}.{key!s}", part) for key, part in value.items()]
            yield from (
                (name, f"a key of {path or name}", key) for key in value if isinstance(key, str)
            )
        waiting += ((name, place, part, depth + 1) for place, part in reversed(parts))
        yield name, path, value if isinstance(value, str) else ""
