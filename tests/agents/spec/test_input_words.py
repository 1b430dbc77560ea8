"""Inputs on a command line: a folder's files, several values, standard input."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from unspoken.agents.spec.input_words import read_inputs
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import InputError


def spec(**inputs: str) -> WorkflowSpec:
    """A workflow with these inputs, by type."""
    agents = {"a": {"model": "m", "prompt": "x"}}
    return WorkflowSpec.model_validate(
        {"name": "w", "models": {"m": "r"}, "inputs": inputs, "agents": agents}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three documents of several lines, one note that is none of them, and a folder."""
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name}, line 1\nline 2\n", encoding="utf-8")
    (tmp_path / "note.md").write_text("a note", encoding="utf-8")
    (tmp_path / "folder.txt").mkdir()
    return tmp_path


def test_a_pattern_gives_a_list_one_item_a_file(folder: Path) -> None:
    """The files are in the order of their names, each as a whole; a folder is no file."""
    read = read_inputs(spec(docs="list"), [f"docs=@{folder}/*.txt"])
    assert read == {"docs": [f"{name}, line 1\nline 2" for name in "abc"]}


def test_a_list_given_several_times_has_one_item_each_time(folder: Path) -> None:
    """Words, JSON, a file as a whole, a pattern, and a word that starts with @."""
    words = ["docs=one", "docs=2", f"docs=@{folder}/note.md", f"docs=@{folder}/[bc].txt"]
    read = read_inputs(spec(docs="list"), [*words, "docs=@@name"])
    b, c = (f"{name}, line 1\nline 2" for name in "bc")
    assert read == {"docs": ["one", 2, "a note", b, c, "@name"]}


def test_a_list_given_once_is_its_lines(folder: Path) -> None:
    """One file is one item a line, as it is without patterns."""
    assert read_inputs(spec(docs="list"), [f"docs=@{folder}/a.txt"]) == {
        "docs": ["a, line 1", "line 2"]
    }


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    """Brackets in a name that exists match nothing else."""
    (tmp_path / "[draft].txt").write_text("the draft", encoding="utf-8")
    (tmp_path / "d.txt").write_text("another", encoding="utf-8")
    read = read_inputs(spec(docs="list"), [f"docs=@{tmp_path}/[draft].txt"])
    assert read == {"docs": ["the draft"]}


def test_a_pattern_without_files_is_refused(tmp_path: Path) -> None:
    """An empty list would run a workflow over nothing."""
    with pytest.raises(InputError, match="no file matches") as caught:
        read_inputs(spec(docs="list"), [f"docs=@{tmp_path}/*.txt"])
    assert "quote the pattern" in str(caught.value)


def test_a_pattern_for_a_text_is_refused(folder: Path) -> None:
    """The error says which inputs may be given so."""
    with pytest.raises(InputError, match="names several files") as caught:
        read_inputs(spec(x="text"), [f"x=@{folder}/*.txt"])
    assert "type list" in str(caught.value)


def test_a_text_that_is_given_twice_is_refused() -> None:
    """The error says which inputs may be given several times."""
    with pytest.raises(InputError, match="input 'x' is given twice") as caught:
        read_inputs(spec(x="text"), ["x=1", "x=2"])
    assert "type list" in str(caught.value)


def test_a_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read as a file is; only one input can have it."""
    piped = SimpleNamespace(buffer=io.BytesIO(b"\xef\xbb\xbfone\r\ntwo\n"))
    monkeypatch.setattr(sys, "stdin", piped)
    assert read_inputs(spec(x="text"), ["x=@-"]) == {"x": "one\ntwo"}
    with pytest.raises(InputError, match="standard input is given twice"):
        read_inputs(spec(x="text", y="text"), ["x=@-", "y=@-"])
