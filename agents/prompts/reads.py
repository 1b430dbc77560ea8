"""Which names a template reads from its context, what of them, and where."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import pairwise

from unspoken.agents.prompts.lexer import Tag, Token

_CONSTANTS = ("False", "false", "None", "none", "True", "true")
_WORDS = frozenset(["and", "else", "elif", "if", "in", "is", "not", "or", "recursive", *_CONSTANTS])
_GIVEN = frozenset({"caller", "dict", "loop", "namespace", "range", "self"})
_SILENT = frozenset({"block", "endblock", "raw", "endraw"})


@dataclass(frozen=True, slots=True)
class Reference:
    """A name that a template reads.

    Attributes:
        root: The name, such as ``inputs`` or an agent's.
        attribute: What it reads of it, ``None`` for the thing itself or a computed key.
        line: Line in the template, counted from 1.
        asked: Whether it is only asked if the thing is there: ``{% if reader %}`` or ``reader is
            defined``.
        path: Of an agent's ``data``, what it reads of that, as far as its names are written out.
    """

    root: str
    attribute: str | None
    line: int
    asked: bool = False
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Read:
    """One place of a reference.

    Attributes:
        reference: What is read.
        start: Where it begins, in characters.
        stop: Where it ends, its attribute with it.
        then: What follows it: ``|default``, ``is``, ``[`` or something else.
    """

    reference: Reference
    start: int
    stop: int
    then: str = ""


def reads_of(tags: tuple[Tag, ...], free: frozenset[str], expression: bool) -> tuple[Read, ...]:
    """What a template reads of the names that it does not define itself."""
    return tuple(read for tag in tags for read in _reads(tag, free, expression))


def names_of(tags: tuple[Tag, ...], free: Collection[str]) -> frozenset[str]:
    """The names that a template reads from its context.

    Args:
        tags: The template.
        free: What the engine says of it, which leaves out what stands in a slice.
    """
    named = {tag.tokens[index].text for tag in tags for index in _places(tag)}
    defined = {name for tag in tags for name in _defined(tag)}
    return frozenset(named - defined - _GIVEN | (set(free) - _GIVEN))


def _places(tag: Tag) -> Iterator[int]:
    """Where names are read: not attributes, filters, tests or names of arguments."""
    tokens = tag.tokens
    for index in range(_first(tag), len(tokens)):
        token = tokens[index]
        before = tokens[index - 1].text if index else ""
        after = tokens[index + 1].text if index + 1 < len(tokens) else ""
        if token.kind != "name" or token.text in _WORDS or before in (".", "|") or after == "=":
            continue
        if not _is_test(tokens, index):
            yield index


def _defined(tag: Tag) -> set[str]:
    words = [token.text for token in tag.tokens]
    if tag.keyword in ("for", "set"):
        return set(words[1 : _first(tag)])
    if tag.keyword == "with":
        return {word for word, after in pairwise(words) if after == "="}
    if tag.keyword == "call" and words[1:2] == ["("]:
        return set(words[2 : words.index(")")])
    return set(words[1:]) if tag.keyword in ("block", "macro") else set()


def _reads(tag: Tag, free: frozenset[str], expression: bool) -> Iterator[Read]:
    tokens = tag.tokens
    for index in _places(tag):
        token = tokens[index]
        if token.text not in free:
            continue
        after = [item.text for item in tokens[index + 1 : index + 4]]
        attribute, last = None, index
        if after[:1] == ["."] and len(after) > 1:
            attribute, last = after[1], index + 2
        elif after[:1] == ["["] and after[2:] == ["]"] and tokens[index + 2].kind == "string":
            attribute, last = after[1][1:-1], index + 3
        path, last = _path(tokens, last) if attribute == "data" else ((), last)
        asked = attribute is None and _asked(tag, index, expression)
        rest = [item.text for item in tokens[last + 1 : last + 3]]
        then = "".join(rest) if rest[:1] == ["|"] else "".join(rest[:1])
        stop = tokens[last].start + len(tokens[last].text)
        reference = Reference(token.text, attribute, token.line, asked, path)
        yield Read(reference, token.start, stop, then)


def _path(tokens: tuple[Token, ...], last: int) -> tuple[tuple[str, ...], int]:
    """The names and numbers that are read of a token's value, and the last token of them."""
    path: list[str] = []
    while True:
        after = tokens[last + 1 : last + 4]
        words = [token.text for token in after]
        if words[:1] == ["."] and len(words) > 1 and words[2:] != ["("]:
            path.append(words[1])
            last += 2
        elif words[:1] == ["["] and words[2:] == ["]"] and after[1].kind == "string":
            path.append(words[1][1:-1])
            last += 3
        elif words[:1] == ["["] and words[2:] == ["]"] and words[1].isdigit():
            path.append(words[1])
            last += 3
        else:
            return tuple(path), last


def _first(tag: Tag) -> int:
    """The token after what a statement is called and what it defines."""
    words = [token.text for token in tag.tokens]
    if tag.keyword in _SILENT:
        return len(words)
    if tag.keyword in ("for", "set"):
        end = "in" if tag.keyword == "for" else "="
        return words.index(end) + 1 if end in words else len(words)
    return 2 if tag.keyword in ("filter", "macro") else int(tag.opener == "{%")


def _is_test(tokens: tuple[Token, ...], index: int) -> bool:
    words = [token.text for token in tokens[max(0, index - 2) : index]]
    return words[-1:] == ["is"] or words == ["is", "not"]


def _asked(tag: Tag, index: int, expression: bool) -> bool:
    """Whether a name stands where only its truth, or its being there, is asked."""
    words = [token.text for token in tag.tokens]
    after = words[index + 1 : index + 4]
    if after[:1] == ["is"] and {"defined", "undefined"} & {*after[1:2], *after[2:3]}:
        return True
    while words[:index][-1:] == ["("] and after[:1] == [")"]:
        words = [*words[: index - 1], words[index], *words[index + 2 :]]
        index, after = index - 1, words[index : index + 3]
    condition = expression or tag.keyword in ("if", "elif")
    if tag.opener == "{{" and not expression and "if" in words[:index]:
        condition = "else" not in words[:index]
    opens = index == 0 or words[index - 1] in ("if", "elif", "not", "and", "or", "(")
    closes = not after or after[0] in ("and", "or", "else", ")")
    return condition and opens and closes
