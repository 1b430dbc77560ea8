"""The documentation: its code runs, its workflows load, and what is generated is up to date."""

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest

from unspoken.agents.spec.loader import loads

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SNIPPET = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)(?:#[^)]*)?\)")


def blocks(page: Path, language: str) -> list[str]:
    """The page's fenced blocks of one language, with the files they include."""
    text = page.read_text(encoding="utf-8")
    found = [block for kind, block in _BLOCK.findall(text) if kind == language]
    return [
        _SNIPPET.sub(lambda hit: (ROOT / hit[1]).read_text(encoding="utf-8"), one) for one in found
    ]


def pages_with(language: str) -> list[object]:
    """Pages that have such blocks; one that loads an embedded model is marked."""
    found: list[object] = []
    for page in PAGES:
        if code := blocks(page, language):
            marks = [pytest.mark.model] if "embedded:" in "".join(code) else []
            found.append(pytest.param(page, id=page.name, marks=marks))
    return found


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page's Python blocks run in order, as one program; then the tests that it shows."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    for block in blocks(page, "yaml"):  # one that begins with its name is a file beside them
        if named := re.match(r"# (\w+\.yaml)\n", block):
            (tmp_path / named[1]).write_text(block, encoding="utf-8")
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), vars(module))
    for name, thing in list(vars(module).items()):
        if name.startswith("test_"):
            thing()
    if "print(" in "".join(blocks(page, "python")):
        assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("page", "text"),
    [
        pytest.param(page, block, id=f"{page.name}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page, "yaml"))
        if re.search(r"^agents:", block, re.MULTILINE)
    ],
)
def test_yaml_workflows_load(page: Path, text: str) -> None:
    """A workflow shown on a page is a valid one."""
    assert loads(text, page.name).spec.agents


def generator() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "_generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_up_to_date() -> None:
    """Generated tables are what the code says; `python docs/_generate.py` writes them."""
    made = generator().pages()
    assert {page.name for page in made} == {
        *("architectures.md", "cli.md", "errors.md", "packets.md", "workflow-file.md")
    }
    for page, text in made.items():
        assert page.read_text(encoding="utf-8") == text, f"run: python docs/_generate.py ({page})"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link leads to a file of this repository."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in _LINK.findall(text):
        assert (page.parent / target).exists(), target


def test_readme_shows_the_example() -> None:
    """The workflow in the README is the file that the demo runs."""
    example = ROOT / "examples" / "reader_solver" / "workflow.yaml"
    assert blocks(ROOT / "README.md", "yaml") == [example.read_text(encoding="utf-8")]


def test_no_page_loads_a_script() -> None:
    """A mermaid fence would fetch its renderer from another site."""
    for page in PAGES:
        assert "```mermaid" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name
)
def test_prose_has_lines_of_at_most_100_columns(page: Path) -> None:
    """Tables, blocks of code and what is generated may be wider."""
    text = _BLOCK.sub("", re.sub(r"(?s)<!-- generated.*?<!-- end", "", page.read_text("utf-8")))
    wide = [line for line in text.splitlines() if len(line) > 100 and not line.startswith("|")]
    assert not wide, f"{page.name}: {wide}"
