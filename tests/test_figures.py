"""The documentation's figures: each is on its page, has a command, and is compared as it should."""

import importlib.util
import re
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

_PRINTED = re.compile(r"`(\w+)`:\s+\*\*([^*]+)\*\*")
_GENERATED = re.compile(r"<!-- generated: .*?<!-- end -->", re.DOTALL)
_COMMAND = re.compile(r"^    (?:unspoken|python|make) |`unspoken |^```python", re.MULTILINE)
_LITERATURE = "references.md"
_DECIMAL = re.compile(r"\d\.\d")


@cache
def figures() -> types.ModuleType:
    """The script that draws the figures again."""
    spec = importlib.util.spec_from_file_location("_figures", ROOT / "docs" / "_figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def measurements() -> tuple[Any, ...]:
    """What is listed."""
    _, found = figures().listed()
    return tuple(found)


def test_every_figure_is_on_its_page() -> None:
    """In the words that are given for it, which hold what is published."""
    for one in measurements():
        assert "--json" in one.command and one.measured and one.rows and one.figures
        for figure in one.figures:
            text = (ROOT / figure.page).read_text(encoding="utf-8")
            assert figure.is_on(text), f"{figure.page} has no {figure.words!r} ({one.name})"
            assert figure.published == "yes" or figure.published in figure.words
            assert figure.low <= figures().number(figure.published) <= figure.high


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_key_that_a_page_prints_is_listed(page: Path) -> None:
    """A figure beside its key is drawn again by `make figures`."""
    name = page.relative_to(ROOT).as_posix()
    known = {(one.page, one.key) for each in measurements() for one in each.figures}
    for key, _ in _PRINTED.findall(page.read_text(encoding="utf-8")):
        assert (name, key) in known, f"docs/_figures.yaml has no {key} of {name}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != _LITERATURE], ids=lambda page: page.name
)
def test_every_table_of_figures_has_a_command(page: Path) -> None:
    """In its section, or in one that holds it."""
    text = _GENERATED.sub("", page.read_text(encoding="utf-8"))
    above: list[tuple[int, bool, str]] = []
    for part in re.split(r"^(?=#+ )", text, flags=re.MULTILINE):
        depth = len(part) - len(part.lstrip("#"))
        above = [one for one in above if one[0] < depth]
        above.append((depth, bool(_COMMAND.search(part)), part.partition("\n")[0]))
        cells = sum(len(_DECIMAL.findall(line)) for line in part.splitlines() if line[:1] == "|")
        if cells >= 4:
            assert any(commanded for _, commanded, _ in above), f"{page.name}: {above[-1][2]}"


def test_what_no_longer_holds_is_told() -> None:
    """With its page, what is published, and what is found."""
    figure = figures().Figure(
        page="docs/a.md", key="gain", published="4.0x", words="**4.0x**", low=3.0, high=5.0
    )
    assert figure.problem(3.5) is None
    assert figure.problem(2.0) == (
        "docs/a.md: gain is published as 4.0x, found 2.0; 3 to 5 would hold"
    )
    assert "found None" in figure.problem(None)
    assert [figures().number(told) for told in ("95.9 %", "2,000", "yes", "−1.5")] == [
        *(pytest.approx(0.959), 2000, 1, -1.5)
    ]
