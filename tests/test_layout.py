"""The house stays easy to walk through: small folders, small modules, small functions."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES_PER_FOLDER, LINES_PER_MODULE, LINES_PER_FUNCTION = 20, 350, 50

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(*tops: str) -> Iterator[tuple[str, str]]:
    """Each module's path, relative to the root, and its text."""
    for top in tops:
        for file in sorted((ROOT / top).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")


def lines_of(path: str, function: Function) -> int:
    """Lines from `def` to the end, less the docstring's.

    The signature of a command declares its options with their help; it does not count.
    """
    body = function.body
    start = body[0].lineno if path.startswith("agents/cli/") else function.lineno
    lines = (function.end_lineno or 0) - start + 1
    if ast.get_docstring(function) is not None:
        lines -= (body[0].end_lineno or 0) - body[0].lineno + 1
    return lines


def test_no_folder_is_crowded() -> None:
    """A folder of agents/, channels/ and tests/ holds at most 20 modules, __init__ not counted."""
    paths = (Path(path) for path, _ in modules("agents", "channels", "tests"))
    sizes = Counter(path.parent.as_posix() for path in paths if path.name != "__init__.py")
    crowded = {folder: size for folder, size in sizes.items() if size > MODULES_PER_FOLDER}
    assert not crowded, f"more than {MODULES_PER_FOLDER} modules: {crowded}"


def test_no_module_is_long() -> None:
    """A module, of the tests and examples too, has at most 350 lines."""
    everywhere = modules("agents", "channels", "tests", "examples")
    sizes = {path: len(text.splitlines()) for path, text in everywhere}
    long = {path: size for path, size in sizes.items() if size > LINES_PER_MODULE}
    assert not long, f"more than {LINES_PER_MODULE} lines: {long}"


def test_no_function_is_long() -> None:
    """A function, of the tests and examples too, has at most 50 lines beside its docstring."""
    long = {
        f"{path}:{node.lineno} {node.name}": lines_of(path, node)
        for path, text in modules("agents", "channels", "tests", "examples")
        for node in ast.walk(ast.parse(text))
        if isinstance(node, Function) and lines_of(path, node) > LINES_PER_FUNCTION
    }
    assert not long, f"more than {LINES_PER_FUNCTION} lines: {long}"
