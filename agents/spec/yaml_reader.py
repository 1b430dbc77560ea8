"""Safe YAML: plain data, and where each piece of it stands.

ruamel.yaml scans and parses, and the values are built here from its events. So nothing but the core
schema of YAML 1.2 can come out, and every value has a position that an error can name. Every limit
holds before memory is spent: an alias reads the events of its anchor once more, and every value of
theirs counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
)
from ruamel.yaml.reader import ReaderError

from unspoken.agents.spec.yaml_scalars import resolve
from unspoken.channels.errors import Problem, WorkflowError

Path = tuple[str | int, ...]

QUOTE_TEMPLATES = 'put templates in quotes: "{{ ... }}"'
MAX_ALIASES = 1000
MAX_DEPTH = 32
MAX_VALUES = 20_000
_TOO_LARGE = ("a workflow within the limits", "give data as inputs, not in the workflow")
_CORE = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a file, both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What a YAML text says.

    Attributes:
        data: Plain dicts, lists, strings, numbers, booleans and ``None``.
        keys: Where each key stands, by path.
        values: Where each value stands, by path; a collection stands where its key does.
        problems: What is wrong but does not hide the rest, such as duplicate keys.
    """

    data: object
    keys: Mapping[Path, Position]
    values: Mapping[Path, Position]
    problems: tuple[Problem, ...]


def path_text(path: Path) -> str:
    """Write a path as ``agents.solver.prompt`` or ``edges[2].from``."""
    parts = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(parts).removeprefix(".")


@dataclass(frozen=True, slots=True)
class _Merged:
    """A mapping that a merge key takes in, and where its parts stand.

    Attributes:
        data: The mapping.
        path: Its path.
        keys, values: As `Document` has them, of it alone.
    """

    data: dict[str, object]
    path: Path
    keys: Mapping[Path, Position]
    values: Mapping[Path, Position]

    def into(
        self,
        data: dict[str, object],
        path: Path,
        keys: dict[Path, Position],
        values: dict[Path, Position],
    ) -> None:
        """Add what a mapping does not have itself, with its positions."""
        new = self.data.keys() - data.keys()
        data |= {key: value for key, value in self.data.items() if key in new}
        size = len(self.path)
        for positions, mine in ((keys, self.keys), (values, self.values)):
            for inner, position in mine.items():
                if inner[:size] == self.path and len(inner) > size and inner[size] in new:
                    positions[(*path, *inner[size:])] = position


class _Reader:
    """Builds the values of one document from its events."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.events: Iterator[Any] = _events(text, file)
        self.keys: dict[Path, Position] = {}
        self.values: dict[Path, Position] = {}
        self.problems: list[Problem] = []
        self.anchors: dict[str, list[Any] | None] = {}  # None inside the anchor itself
        self.recordings: list[list[Any]] = []  # events of the anchors that are being read
        self.replayed_at: Position | None = None  # the alias whose events are read once more
        self.aliases = self.size = 0

    def next(self) -> Any:
        event = next(self.events)
        for recording in self.recordings:
            recording.append(event)
        return event

    def until(self, end: type) -> Iterator[Any]:
        event = self.next()
        while not isinstance(event, end):
            yield event
            event = self.next()

    def value(self, event: Any, path: Path, position: Position | None = None) -> object:
        position = position or _position(event.start_mark)
        if isinstance(event, AliasEvent):
            return self.alias(event, position, path)
        self.size += 1
        if len(path) > MAX_DEPTH:
            self.fail(position, f"more than {MAX_DEPTH} levels of nesting", path[:2], *_TOO_LARGE)
        if self.size > MAX_VALUES:
            self.fail(position, f"more than {MAX_VALUES} values", path[:2], *_TOO_LARGE)
        anchor = None if self.replayed_at else event.anchor
        if anchor:
            self.anchors[anchor] = None
            self.recordings.append([event])
        value = self.plain(event, position, path)
        if anchor:
            self.anchors[anchor] = self.recordings.pop()
        within = isinstance(value, list | dict) and value
        self.values.setdefault(path, self.keys.get(path, position) if within else position)
        return value

    def plain(self, event: Any, position: Position, path: Path) -> object:
        self.check_tag(event, position, path)
        if isinstance(event, ScalarEvent):
            return self.scalar(event, position, path)
        if isinstance(event, MappingStartEvent):
            return self.mapping(path)
        items: list[object] = []
        for item in self.until(SequenceEndEvent):
            items.append(self.value(item, (*path, len(items))))
        return items

    def alias(self, event: Any, position: Position, path: Path) -> object:
        name = event.anchor
        self.aliases += 1
        if self.aliases > MAX_ALIASES:
            self.fail(position, f"more than {MAX_ALIASES} aliases", path, *_TOO_LARGE)
        events = self.anchors.get(name)
        if events is None:
            inside = "stands inside its own anchor" if name in self.anchors else "has no anchor"
            found, fix = f"alias '*{name}' {inside}", "write the value out"
            self.fail(position, found, path, f"an anchor '&{name}' before it", fix)
        for recording in self.recordings:
            recording.pop()  # what the alias stands for is recorded in its place
        outer, self.replayed_at = self.replayed_at, self.replayed_at or position
        self.events = chain(events, self.events)
        value = self.value(self.next(), path, position)
        self.replayed_at = outer
        return value

    def mapping(self, path: Path) -> dict[str, object]:
        data: dict[str, object] = {}
        merged: list[_Merged] = []
        for event in self.until(MappingEndEvent):
            position = _position(event.start_mark)
            if isinstance(event, ScalarEvent) and event.value == "<<" and event.style is None:
                merged += self.merge(position, path)
                continue
            key = self.key(event, position, path)
            inner = (*path, "?" if key is None else key)
            if key in data:
                first = f"one '{key}'; the first is on line {self.keys[inner].line}"
                self.note(
                    position, f"key '{key}' is given twice", inner, first, "remove one of the two"
                )
            self.keys.setdefault(inner, position)
            value = self.value(self.next(), inner)
            if key is not None:
                data.setdefault(key, value)
        for source in merged:
            source.into(data, path, self.keys, self.values)
        return data

    def merge(self, position: Position, path: Path) -> list[_Merged]:
        """Read the value of a merge key: a mapping, or a list of some, the first of most weight."""
        keys, values = self.keys, self.values
        self.keys, self.values = {}, {}
        inner = (*path, "<<")
        value = self.value(self.next(), inner)
        sources = [(inner, value)]
        if isinstance(value, list):
            sources = [((*inner, n), item) for n, item in enumerate(value)]
        merged = [
            _Merged(item, at, self.keys, self.values)
            for at, item in sources
            if isinstance(item, dict)
        ]
        self.keys, self.values = keys, values
        if len(merged) < len(sources):
            found, fix = "'<<' takes in what is no mapping", "write <<: *name, of an anchor &name"
            self.note(position, found, path, "a mapping, or a list of mappings", fix)
        return merged

    def key(self, event: Any, position: Position, path: Path) -> str | None:
        value = self.value(event, (*path, "?"))
        self.values.pop((*path, "?"), None)
        if isinstance(value, str):
            return value
        if isinstance(event, MappingStartEvent):
            found, fix = "braces stand where text is expected", QUOTE_TEMPLATES
            self.note(position, found, path, "text in quotes", fix)
        elif isinstance(event, ScalarEvent) and event.value:
            found, fix = f"key {event.value} is not text", f'put it in quotes: "{event.value}"'
            self.note(position, found, path, "a name", fix)
        else:
            self.note(
                position, "a key is not text", path, "a name", "write the name before the ':'"
            )
        return None

    def check_tag(self, event: Any, position: Position, path: Path) -> None:
        tag = str(event.tag) if event.tag is not None else ""
        kinds = ["map"] if isinstance(event, MappingStartEvent) else ["seq"]
        if isinstance(event, ScalarEvent):
            kinds = ["str", "int", "float", "bool", "null"]
        if tag not in ("", "!", *(_CORE + kind for kind in kinds)):
            shown = tag.replace(_CORE, "!!")
            self.note(
                position, f"tag '{shown}' is not allowed", path, "plain values", "remove the tag"
            )

    def scalar(self, event: ScalarEvent, position: Position, path: Path) -> object:
        text, tag = event.value, str(event.tag or "").removeprefix(_CORE)
        if re.search("[\ud800-\udfff]", text):
            self.note(position, "half of a surrogate pair is not text", path, "whole characters")
            return ""
        if tag == "!" or tag == "str" or (event.style is not None and not tag):
            return text
        kind, value = resolve(text)
        if tag == "float" and kind == "int":
            return float(text)
        if tag in ("int", "float", "bool", "null") and tag != kind:
            found, expected = f"'{text}' is not of type {tag}", f"a value of type {tag}"
            self.note(position, found, path, expected, "remove the tag")
        return value

    def note(
        self, position: Position, found: str, path: Path, expected: str = "", fix: str = ""
    ) -> None:
        if not self.replayed_at:  # what is wrong behind an anchor was noted there
            place = path_text(path)
            problem = Problem(
                found, place, expected, fix, self.file, position.line, position.column
            )
            self.problems.append(problem)

    def fail(self, position: Position, found: str, path: Path, expected: str, fix: str) -> NoReturn:
        position, self.replayed_at = self.replayed_at or position, None
        self.note(position, found, path, expected, fix)
        raise WorkflowError(self.problems)


def _position(mark: Any) -> Position:
    return Position(mark.line + 1, mark.column + 1)


def parse(text: str, file: str) -> Document:
    """Read one YAML document.

    Raises:
        WorkflowError: Not YAML, more than one document, or beyond the limits of this module.
    """
    reader = _Reader(text, file)
    data: object = None
    for event in reader.events:
        if isinstance(event, DocumentStartEvent):
            if reader.size:
                found, fix = "a second document starts here", "remove the '---' or split the file"
                reader.fail(_position(event.start_mark), found, (), "one workflow in a file", fix)
            data = reader.value(reader.next(), ())
    problems = tuple(reader.problems)
    return Document(data=data, keys=reader.keys, values=reader.values, problems=problems)


def _events(text: str, file: str) -> Iterator[Any]:
    yaml = YAML(typ="safe", pure=True)
    try:
        yield from yaml.parse(text)
    except MarkedYAMLError as error:
        raise _syntax_error(error, text, file) from None
    except ReaderError as error:
        before = text[: error.position]
        position = Position(before.count("\n") + 1, error.position - before.rfind("\n"))
        found = f"character U+{ord(text[error.position]):04X} is not allowed in YAML"
        raise failure(found, file, position, fix="remove it or write it as an escape") from None
    except Exception as error:
        # ruamel lets a few of Python's own exceptions through, such as chr() of a large escape.
        raise failure(f"not valid YAML: {error}", file, Position(1, 1)) from error


def _syntax_error(error: Any, text: str, file: str) -> WorkflowError:
    problem = str(error.problem or error.context or "unreadable")
    unclosed = "unexpected end of stream" in problem and "quoted" in str(error.context)
    mark = (error.context_mark if unclosed else error.problem_mark) or error.context_mark
    position = _position(mark) if mark else Position(1, 1)
    if unclosed:
        return failure("a quote is never closed", file, position, "the same quote at its end")
    if "'\\t'" in problem:
        found = "a tab stands where indentation is expected"
        return failure(found, file, position, "spaces", "indent with spaces")
    within = f" ({error.context})" if error.context and error.problem else ""
    fix = ""
    if "mapping values are not allowed" in problem:
        fix = "put a value that contains ': ' in quotes, and check the indentation"
    elif "{{" in "".join(text.splitlines()[position.line - 1 : position.line]):
        fix = QUOTE_TEMPLATES
    return failure(f"not valid YAML: {problem}{within}", file, position, fix=fix)


def failure(
    found: str, file: str, position: Position | None, expected: str = "", fix: str = ""
) -> WorkflowError:
    """The error of a file that nothing more can be said of, at a position or of the whole."""
    line, column = (position.line, position.column) if position else (0, 0)
    return WorkflowError([Problem(found, "", expected, fix, file, line, column)])
