"""Safe YAML: plain data, and where each piece of it stands.

ruamel.yaml scans and parses; the values are built here, so that nothing but the core schema of
YAML 1.2 can come out, and every limit holds before memory is spent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from unspoken.channels.errors import Problem, WorkflowError

__all__ = ["Document", "Path", "Position", "parse", "path_text", "resolve"]

Path = tuple[str | int, ...]

QUOTE_TEMPLATES = 'put templates in quotes: "{{ ... }}"'
MAX_ALIASES = 64
MAX_DEPTH = 32
MAX_VALUES = 20_000
_TOO_LARGE = ("a workflow within the limits", "give data as inputs, not in the workflow")
_CORE = "tag:yaml.org,2002:"
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


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a file, both counted from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class _Node:
    """One value: a scalar, a list of nodes, or pairs of key and node."""

    value: Any
    position: Position
    size: int = 1
    depth: int = 0


@dataclass(frozen=True, slots=True)
class _Pairs:
    items: tuple[tuple[str, Position, _Node], ...]


@dataclass
class _Builder:
    """Builds the nodes of one document from its events."""

    events: Iterator[Any]
    file: str
    anchors: dict[str, _Node | None] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    aliases: int = 0
    size: int = 0

    def build(self, event: Any, path: Path) -> _Node:
        at = _position(event.start_mark)
        if len(path) > MAX_DEPTH:
            self.fail(at, f"more than {MAX_DEPTH} levels of nesting", path[:2], *_TOO_LARGE)
        if isinstance(event, AliasEvent):
            node = self.alias(event, at, path)
        else:
            if event.anchor:
                self.anchors[event.anchor] = None
            node = self.fresh(event, at, path)
            if event.anchor:
                self.anchors[event.anchor] = node
        self.size += node.size if isinstance(event, AliasEvent) else 1
        if self.size > MAX_VALUES:
            self.fail(at, f"more than {MAX_VALUES} values", path[:2], *_TOO_LARGE)
        return node

    def fresh(self, event: Any, at: Position, path: Path) -> _Node:
        self.check_tag(event, at, path)
        if isinstance(event, ScalarEvent):
            return _Node(self.scalar(event, at, path), at)
        if isinstance(event, SequenceStartEvent):
            return self.sequence(at, path)
        return self.mapping(at, path)

    def alias(self, event: Any, at: Position, path: Path) -> _Node:
        name = event.anchor
        self.aliases += 1
        if self.aliases > MAX_ALIASES:
            self.fail(at, f"more than {MAX_ALIASES} aliases", path, *_TOO_LARGE)
        node = self.anchors.get(name)
        if node is None:
            inside = name in self.anchors
            found = f"alias '*{name}' " + (
                "stands inside its own anchor" if inside else "has no anchor"
            )
            self.fail(at, found, path, f"an anchor '&{name}' before it", "write the value out")
        if len(path) + node.depth > MAX_DEPTH:
            self.fail(at, f"more than {MAX_DEPTH} levels of nesting", path[:2], *_TOO_LARGE)
        return replace(node, position=at)

    def sequence(self, at: Position, path: Path) -> _Node:
        nodes: list[_Node] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            nodes.append(self.build(event, (*path, len(nodes))))
        return _collection(nodes, nodes, at)

    def mapping(self, at: Position, path: Path) -> _Node:
        pairs: dict[str, tuple[str, Position, _Node]] = {}
        nodes: list[_Node] = []
        while not isinstance(event := next(self.events), MappingEndEvent):
            key_at = _position(event.start_mark)
            key = self.key(event, key_at, path)
            nodes.append(self.build(next(self.events), (*path, "?" if key is None else key)))
            if key in pairs:
                self.note(
                    key_at,
                    f"key '{key}' is given twice",
                    (*path, key),
                    f"one '{key}'; the first is on line {pairs[key][1].line}",
                    "remove one of the two",
                )
            elif key is not None:
                pairs[key] = (key, key_at, nodes[-1])
        return _collection(_Pairs(tuple(pairs.values())), nodes, at)

    def key(self, event: Any, at: Position, path: Path) -> str | None:
        node = self.build(event, (*path, "?"))
        if isinstance(node.value, str):
            return node.value
        if isinstance(event, MappingStartEvent):
            found, fix = "braces stand where text is expected", QUOTE_TEMPLATES
            self.note(at, found, path, "text in quotes", fix)
        elif isinstance(event, ScalarEvent) and event.value:
            found, fix = f"key {event.value} is not text", f'put it in quotes: "{event.value}"'
            self.note(at, found, path, "a name", fix)
        else:
            self.note(at, "a key is not text", path, "a name", "write the name before the ':'")
        return None

    def check_tag(self, event: Any, at: Position, path: Path) -> None:
        tag = str(event.tag) if event.tag is not None else ""
        kinds = ["map"] if isinstance(event, MappingStartEvent) else ["seq"]
        if isinstance(event, ScalarEvent):
            kinds = ["str", "int", "float", "bool", "null"]
        if tag not in ("", "!", *(_CORE + kind for kind in kinds)):
            shown = tag.replace(_CORE, "!!")
            self.note(at, f"tag '{shown}' is not allowed", path, "plain values", "remove the tag")

    def scalar(self, event: ScalarEvent, at: Position, path: Path) -> object:
        text, tag = event.value, str(event.tag or "").removeprefix(_CORE)
        if re.search("[\ud800-\udfff]", text):
            self.note(at, "half of a surrogate pair is not text", path, "whole characters")
            return ""
        if tag == "!" or tag == "str" or (event.style is not None and not tag):
            return text
        kind, value = resolve(text)
        if tag == "float" and kind == "int":
            return float(text)
        if tag in ("int", "float", "bool", "null") and tag != kind:
            self.note(
                at,
                f"'{text}' is not of type {tag}",
                path,
                f"a value of type {tag}",
                "remove the tag",
            )
        return value

    def note(self, at: Position, found: str, path: Path, expected: str = "", fix: str = "") -> None:
        place = path_text(path)
        self.problems.append(Problem(found, place, expected, fix, self.file, at.line, at.column))

    def fail(
        self, at: Position, found: str, path: Path, expected: str = "", fix: str = ""
    ) -> NoReturn:
        self.note(at, found, path, expected, fix)
        raise WorkflowError(self.problems)


def _collection(value: list[_Node] | _Pairs, nodes: list[_Node], at: Position) -> _Node:
    size = 1 + sum(node.size for node in nodes)
    return _Node(value, at, size, 1 + max((node.depth for node in nodes), default=0))


def _position(mark: Any) -> Position:
    return Position(mark.line + 1, mark.column + 1)


def parse(text: str, file: str) -> Document:
    """Read one YAML document.

    Raises:
        WorkflowError: Not YAML, more than one document, or beyond the limits of this module.
    """
    builder = _Builder(_events(text, file), file)
    node = None
    for event in builder.events:
        if isinstance(event, DocumentStartEvent):
            if node is not None:
                builder.fail(
                    _position(event.start_mark),
                    "a second document starts here",
                    (),
                    "one workflow in a file",
                    "remove the '---' or split the file",
                )
            node = builder.build(next(builder.events), ())
    keys: dict[Path, Position] = {}
    values: dict[Path, Position] = {}
    data = _plain(node, (), keys, values) if node is not None else None
    return Document(data, keys, values, tuple(builder.problems))


def _plain(
    node: _Node, path: Path, keys: dict[Path, Position], values: dict[Path, Position]
) -> object:
    values[path] = keys.get(path, node.position) if node.size > 1 else node.position
    if isinstance(node.value, list):
        return [_plain(item, (*path, n), keys, values) for n, item in enumerate(node.value)]
    if not isinstance(node.value, _Pairs):
        return node.value
    data = {}
    for key, at, item in node.value.items:
        keys[*path, key] = at
        data[key] = _plain(item, (*path, key), keys, values)
    return data


def _events(text: str, file: str) -> Iterator[Any]:
    yaml = YAML(typ="safe", pure=True)
    try:
        yield from yaml.parse(text)
    except MarkedYAMLError as error:
        raise _syntax_error(error, text, file) from None
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - (before.rfind("\n") + 1) + 1
        found = f"character U+{ord(text[error.position]):04X} is not allowed in YAML"
        raise _failure(
            found, file, line, column, fix="remove it or write it as an escape"
        ) from None
    except Exception as error:
        # ruamel lets a few exceptions of Python's own through, such as chr() of an escape that
        # is out of range.
        raise _failure(f"not valid YAML: {error}", file, 1, 1) from error


def _syntax_error(error: Any, text: str, file: str) -> WorkflowError:
    problem = str(error.problem or error.context or "unreadable")
    unclosed = "unexpected end of stream" in problem and "quoted" in str(error.context)
    mark = (error.context_mark if unclosed else error.problem_mark) or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    if unclosed:
        return _failure("a quote is never closed", file, line, column, "the same quote at its end")
    if "'\\t'" in problem:
        return _failure(
            "a tab stands where indentation is expected",
            file,
            line,
            column,
            "spaces",
            "indent with spaces",
        )
    within = f" ({error.context})" if error.context and error.problem else ""
    fix = ""
    if "mapping values are not allowed" in problem:
        fix = "put a value that contains ': ' in quotes, and check the indentation"
    elif "{{" in "".join(text.splitlines()[line - 1 : line]):
        fix = QUOTE_TEMPLATES
    return _failure(f"not valid YAML: {problem}{within}", file, line, column, fix=fix)


def _failure(
    found: str, file: str, line: int, column: int, expected: str = "", fix: str = ""
) -> WorkflowError:
    return WorkflowError([Problem(found, "", expected, fix, file, line, column)])
