"""Input values as a command line gives them: words, files, a folder's files, standard input."""

import json
import sys
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape, glob, has_magic
from pathlib import Path
from typing import BinaryIO

from unspoken.agents.spec.inputs import MOST_BYTES
from unspoken.agents.spec.spec import InputSpec, WorkflowSpec
from unspoken.channels.errors import InputError

STDIN = "-"
_CHUNK = 2**20


def read_inputs(spec: WorkflowSpec, words: Sequence[str]) -> dict[str, object]:
    """Values of ``NAME=VALUE``, ``NAME=@FILE`` and ``NAME=@-``, which is standard input.

    A list that is given once is JSON, one item a line, or with ``NAME=@DIR/*.txt`` one item a file
    in the order of the names. A list that is given several times has one item each time, a whole
    file each where it names files.

    Raises:
        InputError: A word of another form, a file that cannot be read, a pattern that no file
            matches, or a second value of what is no list.
    """
    given: dict[str, list[str]] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"{word!r} is not an input", expected="NAME=VALUE or NAME=@FILE")
        given.setdefault(name, []).append(text)
    if [text for texts in given.values() for text in texts].count(f"@{STDIN}") > 1:
        raise InputError("standard input is given twice", expected="one input that is read from @-")
    return {
        name: _value(name, texts, spec.inputs.get(name, InputSpec()))
        for name, texts in given.items()
    }


def _value(name: str, texts: list[str], declared: InputSpec) -> object:
    if declared.type == "list" and (len(texts) > 1 or any(map(_pattern, texts))):
        return [item for text in texts for item in _items(name, text)]
    if len(texts) > 1:
        raise InputError(
            f"input {name!r} is given {'twice' if len(texts) == 2 else f'{len(texts)} times'}",
            expected=f"a value of type {declared.type} once",
            fix="declare it with type list to give several",
        )
    if pattern := _pattern(texts[0]):
        raise InputError(
            f"input {name!r} is of type {declared.type}, and {pattern!r} names several files",
            expected="one file",
            fix="declare the input with type list to give one item a file",
        )
    return _convert(name, _text(name, texts[0]), declared)


def _items(name: str, text: str) -> Iterator[object]:
    """What one word adds to a list."""
    if pattern := _pattern(text):
        paths = sorted(path for path in glob(pattern, recursive=True) if Path(path).is_file())
        if not paths:
            raise InputError(
                f"input {name!r}: no file matches {pattern!r}",
                expected="the files whose texts are the items",
                fix="check the path, and quote the pattern so that the shell leaves it",
            )
        for path in paths:
            yield _read(name, path)
    elif text.startswith("@") and not text.startswith("@@"):
        yield _text(name, text)
    else:
        yield _line(_text(name, text))


def _pattern(text: str) -> str:
    """The pattern of files that a word names, if it is one; a file of that very name is none."""
    path = text[1:]
    named = text.startswith("@") and not text.startswith("@@") and has_magic(path)
    return path if named and not glob(escape(path)) else ""


def _text(name: str, text: str) -> str:
    if text.startswith("@@"):
        return text[1:]
    return _read(name, text[1:]) if text.startswith("@") else text


def _read(name: str, path: str) -> str:
    """A file's text, less a byte order mark and the last line break.

    Raises:
        InputError: A file that cannot be read, is no text in UTF-8, or is beyond the bound.
    """
    decoder = getincrementaldecoder("utf-8-sig")()
    parts, size, chunk = list[str](), 0, b"-"
    try:
        # A device or a pipe has no size to look at: each chunk is checked as it comes.
        with _opened(path) as stream:
            while chunk:
                chunk = stream.read(_CHUNK)
                size += len(chunk)
                if size > MOST_BYTES or b"\0" in chunk:
                    what = "a NUL byte" if b"\0" in chunk else f"more than {MOST_BYTES:,} bytes"
                    raise InputError(
                        f"input {name!r} cannot be read from {path!r}: it holds {what}",
                        expected=f"a text file in UTF-8 of at most {MOST_BYTES:,} bytes",
                        fix="check the path, or run over parts of the file",
                    )
                parts.append(decoder.decode(chunk, final=not chunk))
    except (OSError, ValueError) as error:
        many = has_magic(path)
        raise InputError(
            f"input {name!r} cannot be read from {path!r}: {error}",
            expected="a text file in UTF-8",
            fix=f"declare {name!r} as a list in the workflow: it then takes all files that match"
            if many
            else "check the path; a value that starts with @ is written @@",
        ) from error
    text = "".join(parts).replace("\r\n", "\n").replace("\r", "\n")
    return text.removesuffix("\n")


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    if path == STDIN:
        yield sys.stdin.buffer
    else:
        with Path(path).open("rb") as stream:
            yield stream


def _convert(name: str, text: str, declared: InputSpec) -> object:
    if declared.type == "text":
        return text
    if declared.type == "list" and not text.lstrip().startswith("["):
        return [_line(line) for line in text.splitlines() if line.strip()]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        lines = " as JSON, or one item a line" if declared.type == "list" else ""
        expected = f"a value of type {declared.type}{lines}"
        raise InputError(f"input {name!r} is {text[:60]!r}", expected=expected) from None


def _line(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line
