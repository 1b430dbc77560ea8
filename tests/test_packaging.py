"""What is installed, what lies in the repository, and under which names."""

import importlib
import re
import shutil
import subprocess
import tomllib
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("agents", "channels")
TOP_LEVEL = {
    "CITATION.cff",
    "agents",
    "channels",
    "docs",
    "examples",
    "tests",
    "README.md",
    "pyproject.toml",
    # the usual small files
    ".ci",
    ".gitignore",
    ".src",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "constraints.txt",
    "mkdocs.yml",
    "models.txt",
}
HOME_OR_WORK_DIR = re.compile(r"(?<![\w.~})-])/(?:home|root|Users|work)/\w")


@cache
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def repository_files() -> list[Path]:
    """Paths, relative to the root, that git keeps or would add."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return [path for name in listing.split("\0") if name and (ROOT / (path := Path(name))).exists()]


def test_packages_list_is_complete() -> None:
    """Every folder of agents/ and channels/ that holds a module is installed, and no other is."""
    modules = [module for floor in FLOORS for module in (ROOT / floor).rglob("*.py")]
    folders = {module.parent.relative_to(ROOT) for module in modules}
    expected = sorted(".".join(("unspoken", *folder.parts)) for folder in folders)
    assert pyproject()["tool"]["setuptools"]["packages"] == expected


def test_every_package_has_an_init() -> None:
    """A folder without __init__.py would be a namespace that other distributions can write into."""
    for package in pyproject()["tool"]["setuptools"]["packages"]:
        folder = ROOT.joinpath(*package.split(".")[1:])
        assert (folder / "__init__.py").is_file(), folder


@pytest.mark.parametrize("floor", FLOORS)
def test_tool_links_lead_to_the_floors(floor: str) -> None:
    """The links in .src are relative, so that they hold in any clone."""
    link = ROOT / ".src" / "unspoken" / floor
    assert link.is_symlink()
    assert link.readlink() == Path("..", "..", floor)
    assert link.resolve() == ROOT / floor


@pytest.mark.parametrize("floor", FLOORS)
def test_floors_are_imported_from_this_checkout(floor: str) -> None:
    """The tests see the working tree, not some installed copy."""
    module = importlib.import_module(f"unspoken.{floor}")
    assert module.__file__ is not None
    assert Path(module.__file__).resolve() == ROOT / floor / "__init__.py"


@pytest.mark.parametrize("floor", FLOORS)
def test_floors_are_typed(floor: str) -> None:
    """Both packages carry the marker that lets type checkers read them, and it is installed."""
    assert (ROOT / floor / "py.typed").is_file()
    assert "py.typed" in pyproject()["tool"]["setuptools"]["package-data"][f"unspoken.{floor}"]


def test_data_files_are_installed() -> None:
    """What lies beside the modules and is none is named as package data."""
    data = pyproject()["tool"]["setuptools"]["package-data"]
    files = [path for path in repository_files() if path.parts[0] in FLOORS]
    for file in (path for path in files if path.suffix != ".py"):
        patterns = data.get(".".join(("unspoken", *file.parent.parts)), [])
        assert any(file.match(pattern) for pattern in patterns), file


def test_command_is_callable() -> None:
    """The `unspoken` command leads to a function."""
    target = pyproject()["project"]["scripts"]["unspoken"]
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    installed = [entry.value for entry in entry_points(group="console_scripts", name="unspoken")]
    assert installed in ([], [target])


def test_constraints_pin_what_the_project_asks_for() -> None:
    """Every dependency has one exact pin, without a local build tag, inside the declared range."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pairs}
    assert not [name for name, version in pins.items() if "+" in version]
    project = pyproject()["project"]
    extras = [line for group in project["optional-dependencies"].values() for line in group]
    for line in (*project["dependencies"], *extras):
        wanted = Requirement(line)
        if wanted.name != "unspoken":
            assert pins[canonicalize_name(wanted.name)] in wanted.specifier, line


def test_top_level_holds_only_what_was_agreed() -> None:
    """The top level tells the story; a new entry is a decision, made here."""
    assert {path.parts[0] for path in repository_files()} <= TOP_LEVEL


def test_no_file_names_a_folder_of_one_machine() -> None:
    """Nobody else has that folder."""
    found = []
    for path in repository_files():
        file = ROOT / path
        if file.is_symlink() or not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path}: {hit.group()}" for hit in HOME_OR_WORK_DIR.finditer(text)]
        if len(ROOT.parts) > 2 and str(ROOT) in text:
            found.append(f"{path}: {ROOT}")
    assert not found
