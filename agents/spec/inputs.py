"""Input values: read from a command line's words, and checked against the workflow."""

import json
from collections.abc import Mapping
from pathlib import Path

from unspoken.agents.spec.problems import describe, suggest
from unspoken.agents.spec.spec import InputSpec, WorkflowSpec
from unspoken.channels.errors import InputError

__all__ = ["check_inputs", "read_inputs"]


def check_inputs(
    spec: WorkflowSpec, given: Mapping[str, object], *, partial: bool = False
) -> dict[str, object]:
    """The given values and the defaults of the others.

    Args:
        spec: The workflow.
        given: Values by name.
        partial: Leave out an input that is missing instead of refusing it.

    Raises:
        InputError: A value is missing, of another type, or for no input; all are named.
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
            "; ".join(wrong),
            expected=f"inputs {inputs}" if inputs else "no inputs",
            fix="give each as -i NAME=VALUE, or -i NAME=@FILE to read a file",
        )
    return values


def read_inputs(spec: WorkflowSpec, words: list[str]) -> dict[str, object]:
    """Values of ``NAME=VALUE`` and ``NAME=@FILE``; a list is one item a line of its file, or JSON.

    Raises:
        InputError: A word of another form, or a file that cannot be read.
    """
    values: dict[str, object] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"{word!r} is not an input", expected="NAME=VALUE or NAME=@FILE")
        if name in values:
            raise InputError(f"input {name!r} is given twice", expected="each input once")
        if text.startswith("@@"):
            text = text[1:]
        elif text.startswith("@"):
            text = _read(name, text[1:])
        values[name] = _convert(name, text, spec.inputs.get(name, InputSpec()))
    return values


def _read(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"input {name!r} cannot be read from {path!r}: {error}",
            expected="a text file in UTF-8",
            fix="check the path; a value that starts with @ is written @@",
        ) from error


def _convert(name: str, text: str, declared: InputSpec) -> object:
    if declared.type == "text":
        return text
    if declared.type == "list" and not text.lstrip().startswith("["):
        return [_line(line) for line in text.splitlines() if line.strip()]
    try:
        return json.loads(text)
    except ValueError:
        lines = " as JSON, or one item a line" if declared.type == "list" else ""
        expected = f"a value of type {declared.type}{lines}"
        raise InputError(f"input {name!r} is {text[:60]!r}", expected=expected) from None


def _line(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return line
