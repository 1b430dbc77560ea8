"""Prompts, conditions and outputs: sandboxed jinja templates.

A template is text with ``{{ expressions }}``; a condition is one bare expression. Where a template
prints an agent's whole text, `render_parts` keeps that message apart from the words around it, so
that a channel can put its state there.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from jinja2 import Template, TemplateSyntaxError, Undefined, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError

from unspoken.agents.prompts.sandbox import MAX_OUTPUT, TextRef, environment, names
from unspoken.channels.errors import TemplateError

__all__ = ["Reference", "TextRef", "evaluate", "references", "render", "render_parts"]


@dataclass(frozen=True, slots=True)
class Reference:
    """A name that a template reads.

    Attributes:
        root: The name, such as ``inputs`` or an agent's.
        attribute: What it reads of it, ``None`` for the thing itself or a computed key.
        line: Line in the template, counted from 1.
    """

    root: str
    attribute: str | None
    line: int


_LOADS = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


def _parse(source: str, expression: bool) -> nodes.Template:
    """Parse; raises `TemplateError` with the line."""
    if expression and source.lstrip().startswith(("{{", "{%")):
        found = f"condition {_shorten(source)} is in braces"
        raise TemplateError(found, expected="a bare expression", fix="remove the {{ and }}")
    try:
        tree = environment().parse("{{ " + source + "\n}}" if expression else source)
        environment().compile(tree)
    except TemplateSyntaxError as error:
        raise _syntax_error(error, source) from None
    except Exception as error:
        # The parser recurses and Python's compiler has limits of its own.
        found = f"template {_shorten(source)} is too deeply nested: {type(error).__name__}"
        raise TemplateError(found, fix="simplify it") from error
    if expression and not _is_one_expression(tree):
        raise TemplateError(
            f"condition {_shorten(source)} is not one expression", expected="a bare expression"
        )
    if forbidden := next(iter(tree.find_all(_LOADS)), None):
        kind = type(forbidden).__name__.lower()
        found = f"line {forbidden.lineno} of the template uses '{kind}'"
        raise TemplateError(found, expected="a template that stands alone", fix="write it out")
    return tree


def _is_one_expression(tree: nodes.Template) -> bool:
    match tree.body:
        case [nodes.Output(nodes=[only])]:
            return not isinstance(only, nodes.TemplateData)
    return False


def _syntax_error(error: TemplateSyntaxError, source: str) -> TemplateError:
    message = (error.message or "not a template").rstrip(".")
    lines = source.splitlines() or [""]
    line = min(error.lineno, len(lines))
    expected, fix = "a jinja template", "check the braces and quotes"
    if unknown := re.match(r"No (filter|test) named '(.*)'", message):
        known = environment().filters if unknown[1] == "filter" else environment().tests
        close = difflib.get_close_matches(unknown[2], known, n=1)
        expected = f"a {unknown[1]} of jinja"
        fix = f"did you mean '{close[0]}'?" if close else f"remove the {unknown[1]}"
    where = f"line {line} of the template, {_shorten(lines[line - 1])}"
    return TemplateError(f"{where}: {message}", expected=expected, fix=fix)


def _shorten(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= 60 else flat[:57] + "...")


@lru_cache(maxsize=512)
def references(template: str, *, expression: bool = False) -> tuple[Reference, ...]:
    """List what a template, or a bare expression, reads from its context, in order.

    Raises:
        TemplateError: It cannot be parsed; the message has the line.
    """
    tree = _parse(template, expression)
    free = meta.find_undeclared_variables(tree)
    each_once = dict.fromkeys(_read(tree, free))
    return tuple(sorted(each_once, key=lambda reference: reference.line))


def _read(node: nodes.Node, free: set[str]) -> Iterator[Reference]:
    match node:
        case nodes.Getattr(node=nodes.Name(name=name), attr=attribute) if name in free:
            yield Reference(name, attribute, node.lineno)
            return
        case nodes.Getitem(node=nodes.Name(name=name), arg=nodes.Const(value=str() as key)) if (
            name in free
        ):
            yield Reference(name, key, node.lineno)
            return
        case nodes.Name(name=name, ctx="load") if name in free:
            yield Reference(name, None, node.lineno)
    for child in node.iter_child_nodes():
        yield from _read(child, free)


@lru_cache(maxsize=256)
def _compiled(template: str) -> Template:
    tree = _parse(template, expression=False)
    for block in tree.find_all(nodes.Block):  # others may print it too, so it prints words
        for output in block.find_all(nodes.Output):
            output.nodes = [nodes.Concat([item], lineno=item.lineno) for item in output.nodes]
    tree.set_environment(environment())
    code = environment().compile(tree)
    return Template.from_code(environment(), code, environment().globals)


@lru_cache(maxsize=256)
def _condition(expression: str) -> Callable[..., object]:
    _parse(expression, expression=True)
    return environment().compile_expression(expression, undefined_to_none=False)


def render_parts(template: str, context: Mapping[str, object]) -> tuple[str | TextRef, ...]:
    """Render a template, keeping whole messages apart.

    Args:
        template: A jinja template.
        context: Its names. Keys of a mapping (but ``item``'s) become attributes.

    Returns:
        Words and `TextRef` in their order; no empty pieces, no two pieces of words side by side.

    Raises:
        TemplateError: A name is missing, or the template cannot be rendered.
    """
    parts: list[str | TextRef] = []
    for is_message, group in groupby(_printed(template, context), _is_message):
        pieces = list(group)
        parts += pieces if is_message else ["".join(pieces)]
    return tuple(part for part in parts if part)


def _is_message(piece: str) -> bool:
    return isinstance(piece, TextRef)


def render(template: str, context: Mapping[str, object]) -> str:
    """Render a template to text; arguments and errors as `render_parts`."""
    return "".join(_printed(template, context))


def evaluate(expression: str, context: Mapping[str, object]) -> object:
    """Return the value of a bare expression; arguments and errors as `render_parts`."""
    condition = _condition(expression)
    try:
        value = condition(names(context))
        if isinstance(value, Undefined):
            str(value)
    except Exception as error:
        raise _runtime_error(error, expression, context) from error
    return value


def _printed(template: str, context: Mapping[str, object]) -> Iterator[str]:
    """What a template prints, piece by piece; a whole message is a `TextRef`."""
    compiled, size = _compiled(template), 0
    try:
        for value in compiled.generate(names(context)):
            piece = value if isinstance(value, TextRef) else str(value)
            size += len(piece)
            if size > MAX_OUTPUT:
                raise SecurityError(f"it writes more than {MAX_OUTPUT} characters")
            yield piece
    except Exception as error:
        # A template can make Python raise anything, from a division by zero to a recursion.
        raise _runtime_error(error, template, context) from error


def _runtime_error(error: Exception, source: str, context: Mapping[str, object]) -> TemplateError:
    message = str(error) or type(error).__name__
    missing = re.match(r"'(?:(\w+)\.)?(\w+)' is (?:not defined|undefined)", message)
    if not isinstance(error, UndefinedError) or not missing:
        return TemplateError(f"template {_shorten(source)} cannot be rendered: {message}")
    owner = context.get(missing[1]) if missing[1] else context
    known = sorted(owner) if isinstance(owner, Mapping) else []
    prefix = f"{missing[1]}." if missing[1] else ""
    close = difflib.get_close_matches(missing[2], known, n=1)
    return TemplateError(
        f"template {_shorten(source)} reads '{prefix}{missing[2]}', which is not defined",
        expected=", ".join(f"{prefix}{name}" for name in known),
        fix=f"did you mean '{prefix}{close[0]}'?" if close else "",
    )
