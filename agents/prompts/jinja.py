"""Prompts, conditions and outputs: templates in the language of Jinja.

A template is text with ``{{ expressions }}``; a condition is one bare expression. Where a template
prints an agent's whole text, `render_parts` keeps that message apart from the words around it, so
that a channel can put its state there.
"""

from __future__ import annotations

import difflib
import re
import secrets
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

import minijinja

from unspoken.agents.prompts.absent import Absent
from unspoken.agents.prompts.engine import free_names
from unspoken.agents.prompts.lexer import Tag, nesting, scan, scan_expression
from unspoken.agents.prompts.reads import Read, Reference, names_of, reads_of
from unspoken.agents.prompts.sandbox import (
    FILTERS,
    FUEL,
    FUEL_OF_CHILD,
    METHODS,
    TESTS,
    TextRef,
    is_plain,
    plain_data,
    respond,
)
from unspoken.channels.errors import TemplateError

__all__ = ["Reference", "TextRef", "evaluate", "references", "render", "render_parts", "shorten"]

# The engine's parser and what it builds are recursive: these keep both off the end of the stack.
MAX_TOKENS = 300
MAX_BRANCHES = 200
_LOADS = frozenset({"extends", "from", "import", "include"})
_MARKS = {"{#": "a comment", "{%": "a statement", "{{": "an expression"}
_STAND_IN = re.compile("\x02([0-9a-f]{32}):(\\w+)\x03")


def _cut(source: str, expression: bool) -> tuple[Tag, ...]:
    """Cut a template that is one; raises `TemplateError` with the line."""
    return _checked(source, expression)[0]


@lru_cache(maxsize=512)
def _checked(source: str, expression: bool) -> tuple[tuple[Tag, ...], frozenset[str]]:
    """The tags of a template and the names it reads from its context."""
    if expression and source.lstrip().startswith(("{{", "{%")):
        found = f"condition {shorten(source)} is in braces"
        raise TemplateError(found, expected="a bare expression", fix="remove the {{ and }}")
    tags = (scan_expression(source),) if expression else scan(source)
    for tag in tags:
        if tag.opener == "{#" and not tag.closed:
            raise _unfit(source, tag, tag.line, "no '#}' ends it")
        _check_size(tag)
    if sum(tag.keyword == "elif" for tag in tags) > MAX_BRANCHES:
        raise TemplateError(f"a template with more than {MAX_BRANCHES} 'elif'", fix="simplify it")
    if expression and not (tags[0].closed and tags[0].tokens):
        raise _no_expression(source)
    try:
        free = free_names("{{ " + source + "\n}}" if expression else source)
    except minijinja.TemplateError as error:
        if expression:
            raise _no_expression(source, str(error.detail)) from None
        raise _syntax_error(error, source, tags) from None
    except (UnicodeError, ValueError) as error:
        raise TemplateError(f"template {shorten(source)} is no text: {error}") from None
    for tag in tags:
        if not tag.closed:
            raise _unfit(source, tag, tag.line, "its end is not found")
        _check_words(source, tag)
    return tags, names_of(tags, free)


def _check_size(tag: Tag) -> None:
    if len(tag.tokens) > MAX_TOKENS:
        found = f"line {tag.line} of the template is too deeply nested or too long: "
        found += f"{shorten(tag.text)} has {len(tag.tokens)} parts"
        raise _at(tag.line, found, f"{MAX_TOKENS} parts at most", "simplify it")


def _no_expression(source: str, detail: str = "") -> TemplateError:
    found = f"condition {shorten(source)} is not one expression"
    found += f": {detail}" if detail else ""
    return TemplateError(found, expected="a bare expression", fix="check the quotes and brackets")


def _check_words(source: str, tag: Tag) -> None:
    """Refuse other templates, and filters, tests and methods that the engine has not."""
    if tag.keyword in _LOADS:
        found = f"line {tag.line} of the template uses '{tag.keyword}'"
        raise _at(tag.line, found, "a template that stands alone", "write it out")
    words = ["", "", *(token.text for token in tag.tokens), ""]
    for index, token in enumerate(tag.tokens):
        before, last, after = words[index], words[index + 1], words[index + 3]
        kind, known = "", FILTERS
        if token.kind != "name":
            continue
        if last == "|" or (last == "filter" and index == 1 and tag.keyword == "filter"):
            kind = "filter"
        elif (last == "is" and token.text != "not") or (before == "is" and last == "not"):
            kind, known = "test", TESTS
        elif last == "." and after == "(" and before != "self":
            kind, known = "method", METHODS
        if kind and token.text not in known and not (kind == "test" and token.text in _VALUES):
            raise _unknown(source, token.line, kind, token.text, known)


_VALUES = frozenset({"False", "None", "True", "false", "in", "none", "true"})


def _unknown(source: str, line: int, kind: str, name: str, known: frozenset[str]) -> TemplateError:
    close = difflib.get_close_matches(name, known, n=1)
    return _at(
        line,
        f"{_where(source, line)}: No {kind} named '{name}'",
        f"a {kind} of templates",
        f"did you mean '{close[0]}'?" if close else f"remove the {kind}",
    )


def _at(line: int, found: str, expected: str = "", fix: str = "") -> TemplateError:
    error = TemplateError(found, expected=expected, fix=fix)
    error.line = line
    return error


def _where(source: str, line: int) -> str:
    lines = source.splitlines() or [""]
    line = max(1, min(line, len(lines)))
    return f"line {line} of the template, {shorten(lines[line - 1])}"


def _syntax_error(
    error: minijinja.TemplateError, source: str, tags: tuple[Tag, ...]
) -> TemplateError:
    """An error of the engine's parser, told by the tag that it is about."""
    start = error.range[0] if error.range else 0
    position = len(source.encode()[: start + 1].decode("utf-8", "ignore"))
    about = [tag for tag in tags if tag.opener and tag.start < position]
    detail = str(error.detail or error.message)
    if not about:
        return _at(error.line or 1, f"{_where(source, error.line or 1)}: {detail}")
    if "recursion" in detail:
        found = f"template {shorten(source)} is too deeply nested"
        return TemplateError(found, fix="simplify it")
    tag = about[-1]
    return _unfit(source, tag, error.line or tag.line, detail)


def _unfit(source: str, tag: Tag, line: int, detail: str) -> TemplateError:
    mark = tag.opener
    check = "" if mark == "{#" else "check the braces and quotes; "
    return _at(
        line,
        f"{_where(source, line)}: '{mark}' begins {_MARKS[mark]}: {detail}",
        "a jinja template",
        f"{check}to print '{mark}' as it is, write {{{{ '{mark}' }}}} "
        "or put the text between {% raw %} and {% endraw %}",
    )


def shorten(text: str) -> str:
    """A text on one line, cut short, in quotes."""
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= 60 else flat[:57] + "...")


@lru_cache(maxsize=512)
def references(template: str, *, expression: bool = False) -> tuple[Reference, ...]:
    """List what a template, or a bare expression, reads from its context, in order.

    Raises:
        TemplateError: It cannot be parsed; the message has the line.
    """
    tags, free = _checked(template, expression)
    each_once = dict.fromkeys(read.reference for read in reads_of(tags, free, expression))
    return tuple(sorted(each_once, key=lambda reference: reference.line))


def render_parts(template: str, context: Mapping[str, object]) -> tuple[str | TextRef, ...]:
    """Render a template, keeping whole messages apart.

    Args:
        template: A template.
        context: Its names. Only plain data reaches the template: numbers, text, lists, mappings.

    Returns:
        Words and `TextRef` in their order; no empty pieces, no two pieces of words side by side.

    Raises:
        TemplateError: A name is missing, the template cannot be rendered, or takes too many steps.
    """
    if "{" not in template:  # neither a tag nor a comment nor a raw block
        return (template,) if template else ()
    messages = {
        name: text
        for name, value in context.items()
        if isinstance(value, Mapping) and isinstance(text := value.get("text"), TextRef)
    }
    secret = secrets.token_hex(16)  # no text can hold it, for none is written after it was drawn
    stand_ins = {name: f"\x02{secret}:{name}\x03" for name in messages}
    text = str(_produced(template, context, expression=False, stand_ins=stand_ins))
    parts: list[str | TextRef] = []
    done = 0
    for found in _STAND_IN.finditer(text):
        if found[1] == secret:
            parts += [text[done : found.start()], messages[found[2]]]
            done = found.end()
    return tuple(part for part in (*parts, text[done:]) if part)


def render(template: str, context: Mapping[str, object]) -> str:
    """Render a template to text; arguments and errors as `render_parts`."""
    return str(_produced(template, context, expression=False))


def evaluate(expression: str, context: Mapping[str, object]) -> object:
    """Return the value of a bare expression; arguments and errors as `render_parts`."""
    return _produced(expression, context, expression=True)


def _produced(
    source: str,
    context: Mapping[str, object],
    *,
    expression: bool,
    stand_ins: Mapping[str, str] = {},
) -> object:
    tags, free = _checked(source, expression)
    if not expression and "{" not in source:  # neither a tag nor a comment nor a raw block
        return source
    reads = reads_of(tags, free, expression)
    request: dict[str, Any] = {"expression": expression}
    try:
        request["names"] = plain_data(
            {
                name: value.fields if isinstance(value, Absent) else value
                for name, value in context.items()
                if name in free
            }
        )
    except ValueError as error:
        raise TemplateError(f"template {shorten(source)} cannot be rendered: {error}") from error
    changes = list(_changes(reads, context))
    captured = [held for _, held in nesting(tags)]
    if stand_ins and not any(captured) and not any(_rewords(tag, stand_ins) for tag in tags):
        request["messages"] = _distinct(stand_ins, request["names"])
    for tag, held in zip(tags, captured, strict=True):
        name = printed_message(tag)
        if name in stand_ins and name in free and not held:
            first, last = tag.tokens[0], tag.tokens[-1]
            stand_in = f"message_{len(request['names'])}"
            request["names"][stand_in] = stand_ins[name]
            changes.append((first.start, last.start + len(last.text), stand_in))
    request["source"] = _changed(source, changes)
    plain = is_plain(tags)
    answer = respond(request, plain)
    if answer.get("error", {}).get("kind") == "OutOfFuel":
        steps = FUEL if plain else FUEL_OF_CHILD
        raise TemplateError(
            f"template {shorten(source)} takes more than {steps:,} steps",
            expected="a template that ends soon; 64 characters that it handles are a step",
            fix="make its loops, or the texts they handle, shorter",
        )
    if "error" in answer:
        raise _runtime_error(answer["error"], source, context)
    return answer["value"]


def _distinct(stand_ins: Mapping[str, str], names: Mapping[str, Any]) -> dict[str, str]:
    """The messages that are told by their words: those of equal words are told by name alone."""
    texts = [names[name]["text"] for name in stand_ins if name in names]
    return {
        name: stand_in
        for name, stand_in in stand_ins.items()
        if name in names and texts.count(names[name]["text"]) == 1
    }


def _rewords(tag: Tag, messages: Mapping[str, str]) -> bool:
    """Whether a tag makes other words of a message: by a filter or by cutting it."""
    words = [token.text for token in tag.tokens]
    filters = {word for before, word in pairwise(words) if before == "|"}
    changes = filters - {"d", "default"} or ":" in words
    return bool(changes) and any(word in messages for word in words)


def printed_message(tag: Tag) -> str:
    """The agent whose whole text a tag prints, such as ``{{ reader.text }}``; empty for none."""
    words = [token.text for token in tag.tokens]
    if tag.opener != "{{" or not words or tag.tokens[0].kind != "name":
        return ""
    by_key = words[1:2] == ["["] and words[2:3] in (["'text'"], ['"text"']) and words[3:] == ["]"]
    return words[0] if by_key or words[1:] == [".", "text"] else ""


def _changes(
    reads: tuple[Read, ...], context: Mapping[str, object]
) -> Iterator[tuple[int, int, str]]:
    """What stands in a template for agents that are absent: nothing, or what is undefined."""
    for read in reads:
        root, attribute = read.reference.root, read.reference.attribute
        owner = context.get(root)
        whole = attribute is None and not read.reference.asked and read.then != "["
        if whole and isinstance(owner, Mapping) and root != "item":
            found = f"'{root}' is not text by itself"
            raise TemplateError(found, expected=f"something of it, such as {root}.text")
        if isinstance(owner, Absent) and attribute not in owner.fields:
            asks = read.then in ("is", "|default", "|d")
            yield read.start, read.stop, "(0 if false)" if asks else "('')"


def _changed(source: str, changes: list[tuple[int, int, str]]) -> str:
    for start, stop, text in sorted(changes, reverse=True):
        source = source[:start] + text + source[stop:]
    return source


def _runtime_error(
    error: Mapping[str, Any], source: str, context: Mapping[str, object]
) -> TemplateError:
    message = str(error["detail"])
    missing = re.match(r"`(?:(\w+)(?:\.|\['))?(\w+)(?:'\])?` is undefined", message)
    if error["kind"] != "UndefinedError" or not missing:
        return TemplateError(f"template {shorten(source)} cannot be rendered: {message}")
    owner = context.get(missing[1]) if missing[1] else context
    known = sorted(owner) if isinstance(owner, Mapping) else []
    prefix = f"{missing[1]}." if missing[1] else ""
    close = difflib.get_close_matches(missing[2], known, n=1)
    return TemplateError(
        f"template {shorten(source)} reads '{prefix}{missing[2]}', which is not defined",
        expected=", ".join(f"{prefix}{name}" for name in known),
        fix=f"did you mean '{prefix}{close[0]}'?" if close else "",
    )
