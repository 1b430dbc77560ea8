"""English that CPython itself carries: its reference, and its library's docstrings and comments."""

import ast
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

SHORTEST = 200
SKIPPED = {
    "test",
    "tests",
    "idle_test",
    "encodings",
    "site-packages",
    "lib2to3",
    "turtledemo",
    "__pycache__",
}
CODE = re.compile(
    r"\s*(>>>|\.\.\.|\||\+[-=+]|[-=~*#_.^]{3,}|[$%@}{)\]]"
    r"|(def|class|import|from|return|print)\b.*[(:=]|#!|\.\. )"
    r"|.*(\S {3,}\S.* {3,}\S|::=|[{;]\s*$|\) ?->|^\s*\w+ = )"
)
"""Lines of doctests, tables, rulers, grammars and programs."""


@cache
def builtin_text(stdlib: Path | None = None) -> str:
    """About 1.8 MB of plain English that needs no download; the same for one Python release.

    The topics of ``help()``, then the docstrings and comment blocks of the standard library that
    have at least 200 characters, read but never imported. Documents are parted by form feeds.

    Args:
        stdlib: Folder of the library's sources; this interpreter's by default. Where it has none,
            the topics are all.
    """
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_path("stdlib")) if stdlib is None else stdlib
    documents = [_prose(topics[name]) for name in sorted(topics)]
    seen: set[str] = set()
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if SKIPPED.isdisjoint(parts) and not parts[0].startswith("config-"):
            documents.append("\n\n".join(_fresh(_notes(file), seen)))
    return "\f".join(document for document in documents if len(document) >= SHORTEST)


def _notes(file: Path) -> Iterator[str]:
    """Docstrings, then comment blocks, of one source file; nothing where it cannot be read."""
    try:
        source = file.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source) if '"""' in source else ast.Module([], [])
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    yield from _docstrings(tree)
    for block in re.findall(r"(?:^[ \t]*# ?.*\n){4,}", source, re.MULTILINE):
        yield re.sub(r"^[ \t]*# ?", "", block, flags=re.MULTILINE)


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Docstrings of a module, its classes and functions, in the order of the file."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Expr(value=ast.Constant(value=str() as text)):
                yield text
            case ast.stmt():
                yield from _docstrings(child)


def _fresh(notes: Iterator[str], seen: set[str]) -> Iterator[str]:
    """The notes that are long enough and were not seen before, as prose."""
    for note in notes:
        if len(note) >= SHORTEST and (text := _prose(note)) not in seen and len(text) >= SHORTEST:
            seen.add(text)
            yield text


def _prose(text: str) -> str:
    """`text` dedented and unwrapped, without code, doctests, tables and runs of blank lines."""
    first, newline, rest = text.expandtabs().partition("\n")
    lines = (first.lstrip() + newline + textwrap.dedent(rest)).splitlines()
    prose = [line.rstrip() for line in lines if not CODE.match(line) and not _indented(line)]
    joined = "\n".join(_unwrapped(prose)).replace("\f", "\n")
    return re.sub(r"\n{3,}", "\n\n", joined).strip()


def _unwrapped(lines: Sequence[str]) -> list[str]:
    """Full lines joined with the next one, unless that is indented otherwise or a list's item."""
    joined: list[str] = []
    last = ""
    for line in lines:
        bare = line.strip()
        same = _margin(last) == _margin(line)
        if bare and len(last) >= 50 and same and not re.match(r"[-*+•]|\(?\w{1,2}[.)] ", bare):
            joined[-1] += " " + bare
        else:
            joined.append(line)
        last = line
    return joined


def _margin(line: str) -> int:
    """How many spaces a line begins with."""
    return len(line) - len(line.lstrip())


def _indented(line: str) -> bool:
    """An indented line that is more punctuation than words."""
    bare = line.strip()
    if len(line) - len(bare) < 3 or not bare:
        return False
    letters = sum(sign.isalpha() or sign == " " for sign in bare)
    return letters < 0.8 * len(bare)
