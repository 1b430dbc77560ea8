"""A template cut into its words, expressions, statements and comments.

The engine that renders templates keeps its own syntax tree to itself. What the planner and the
checks need of a template is less: which names it reads, where, and what it prints as a whole.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

_OPEN = re.compile(r"\{\{|\{%|\{#")
_RAW = re.compile(r"\{%[-+]?\s*raw\s*[-+]?%\}")
_END_RAW = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
_CLOSE = {"{{": re.compile(r"[-+]?\}\}"), "{%": re.compile(r"[-+]?%\}")}
_SPACE = re.compile(r"\s+")
_TOKEN = re.compile(
    r"(?P<string>'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\")"
    r"|(?P<number>\d[\w]*(?:\.\d+)?(?:[eE][-+]?\d+)?)"
    r"|(?P<name>[^\W\d]\w*)"
    r"|(?P<operator>\*\*|//|==|!=|<=|>=|[-+*/%~<>=.,:|()\[\]{}])",
    re.DOTALL,
)
# What these print is held as text, where something else may look at it or change it.
_CAPTURING = frozenset({"autoescape", "block", "call", "filter", "macro"})
_BLOCKS = frozenset({"for", "if", "with"})


@dataclass(frozen=True, slots=True)
class Token:
    """A name, string, number or operator inside a tag.

    Attributes:
        kind: ``name``, ``string``, ``number`` or ``operator``.
        text: As it is written.
        start: Where in the template it begins, in characters.
        line: Its line in the template, counted from 1.
    """

    kind: str
    text: str
    start: int
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A stretch of a template.

    Attributes:
        opener: ``{{``, ``{%`` or ``{#``; empty for words.
        text: As it is written; of words, what is printed (white space around tags left aside).
        tokens: What an expression or a statement holds.
        start: Where it begins, in characters.
        stop: Where the next begins.
        line: Its line, counted from 1.
        closed: Whether its end was found.
    """

    opener: str
    text: str
    tokens: tuple[Token, ...] = ()
    start: int = 0
    stop: int = 0
    line: int = 1
    closed: bool = True

    @property
    def keyword(self) -> str:
        """A statement's first word, empty for all others."""
        return self.tokens[0].text if self.opener == "{%" and self.tokens else ""


@lru_cache(maxsize=256)
def scan(template: str) -> tuple[Tag, ...]:
    """Cut a template; an end that is missing is told by `Tag.closed`, never raised."""
    return tuple(_tags(template))


def scan_expression(expression: str) -> Tag:
    """A bare expression as a tag; not closed where it is none to the end."""
    tokens, stop = _tokens(expression, 0, _Lines(expression), None)
    whole = stop == len(expression)
    return Tag(opener="{{", text=expression, tokens=tuple(tokens), closed=whole)


class _Lines:
    """Counts lines on the way through a text, each character once."""

    def __init__(self, text: str) -> None:
        self._text, self._at, self._line = text, 0, 1

    def of(self, position: int) -> int:
        self._line += self._text.count("\n", self._at, position)
        self._at = position
        return self._line


def _tags(source: str) -> Iterator[Tag]:
    lines, position, trims = _Lines(source), 0, False
    while position < len(source):
        match = _OPEN.search(source, position)
        start = match.start() if match else len(source)
        words = source[position:start].lstrip() if trims else source[position:start]
        if source.startswith("-", start + 2):
            words = words.rstrip()
        if words:
            line = lines.of(position)
            yield Tag(opener="", text=words, start=position, stop=start, line=line)
        if match is None:
            return
        if raw := _RAW.match(source, start):
            tag = _raw(source, raw, lines.of(start))
        else:
            tag = _tag(source, start, match[0], lines)
        if tag.text or not tag.closed:
            yield tag
        position = tag.stop
        trims = tag.closed and source[position - 3 : position - 2] == "-"


def _tag(source: str, start: int, opener: str, lines: _Lines) -> Tag:
    line, end = lines.of(start), -1
    tokens: list[Token] = []
    if opener == "{#":
        end = source.find("#}", start + 2) + 2
        closed = end > 1
    else:
        skip = 1 if source[start + 2 : start + 3] in ("-", "+") else 0
        tokens, after = _tokens(source, start + 2 + skip, lines, _CLOSE[opener])
        close = _CLOSE[opener].match(source, after)
        closed, end = close is not None, close.end() if close else -1
    stop = end if closed else len(source)
    return Tag(
        opener=opener,
        text=source[start:stop],
        tokens=tuple(tokens),
        start=start,
        stop=stop,
        line=line,
        closed=closed,
    )


def _raw(source: str, opening: re.Match[str], line: int) -> Tag:
    """The words between raw and its end, or a statement that is not closed."""
    end = _END_RAW.search(source, opening.end())
    if end is None:
        text, start = source[opening.start() :], opening.start()
        return Tag(opener="{%", text=text, start=start, stop=len(source), line=line, closed=False)
    words = source[opening.end() : end.start()]
    words = words.lstrip() if opening[0].endswith("-%}") else words
    words = words.rstrip() if end[0].startswith("{%-") else words
    return Tag(opener="", text=words, start=opening.end(), stop=end.end(), line=line)


def _tokens(
    source: str, position: int, lines: _Lines, close: re.Pattern[str] | None
) -> tuple[list[Token], int]:
    """The tokens up to a closing mark outside of brackets, and where they stop."""
    tokens: list[Token] = []
    depth = 0
    while position < len(source):
        if space := _SPACE.match(source, position):
            position = space.end()
            continue
        braces_are_open = depth > 0 and close is _CLOSE["{{"]
        if close is not None and not braces_are_open and close.match(source, position):
            return tokens, position
        match = _TOKEN.match(source, position)
        if match is None:
            return tokens, position
        kind, text = str(match.lastgroup), match[0]
        if kind == "operator":
            depth += (text in ("(", "[", "{")) - (text in (")", "]", "}"))
            if depth < 0:
                return tokens, position
        tokens.append(Token(kind, text, position, lines.of(position)))
        position = match.end()
    return tokens, position


def nesting(tags: tuple[Tag, ...]) -> tuple[tuple[int, bool], ...]:
    """Per tag, how many blocks are open after it, and whether what it prints is held as text.

    Macros, filters, blocks and sets hold what is printed inside them.
    """
    levels: list[tuple[int, bool]] = []
    blocks: list[bool] = []
    held = 0
    for tag in tags:
        word = tag.keyword
        if word.startswith("end") and blocks:
            held -= blocks.pop()
        elif word in _BLOCKS or _captures(tag):
            blocks.append(_captures(tag))
            held += blocks[-1]
        levels.append((len(blocks), held > 0))
    return tuple(levels)


def _captures(tag: Tag) -> bool:
    if tag.keyword == "set":
        return all(token.text != "=" for token in tag.tokens)
    recursive = tag.keyword == "for" and tag.tokens[-1].text == "recursive"
    return recursive or tag.keyword in _CAPTURING
