"""The text that bridges are fitted on."""

import json
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from unspoken.channels.data.sources import row_text
from unspoken.channels.data.text import (
    builtin_text,
    detokenize,
    documents,
    load_corpus,
    paragraphs,
    split,
)
from unspoken.channels.errors import InputError

WIKI = (
    "\n = Lobster = \n \n The lobster weighs 0 @.@ 7 – 2 kg ( 1 @,@ 500 oz ) , a well @-@ known "
    "fact . "
    "It isn 't red ; it 's blue . \n \n = = Habitat = = \n \n Lobsters live on the sea floor of "
    "the north , "
    "where they hide in holes . \n = Heron = \n \n The heron stands in shallow water and waits for "
    "a fish . It "
    "is grey , and said to be ' patient ' . \n"
)


def _sentences(word: str, count: int = 12) -> str:
    return " ".join(
        f"The {word} number {i} is here to fill a line of this text." for i in range(count)
    )


def _file(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_the_builtin_text_is_large_and_mostly_words() -> None:
    """CPython gives over 1.5 million characters of prose."""
    text = builtin_text()
    assert len(text) > 1_500_000
    assert sum(sign.isalpha() or sign.isspace() for sign in text) / len(text) > 0.88
    assert ">>> " not in text
    assert text.count("\f") > 200


def test_without_sources_the_topics_are_left(tmp_path: Path) -> None:
    """A Python that ships no sources still has the texts of help()."""
    text = builtin_text(tmp_path)
    assert 200_000 < len(text) < len(builtin_text())
    assert builtin_text().startswith(text)


def test_docstrings_are_read_and_never_run(tmp_path: Path) -> None:
    """Doctests, doubles and tests are left out; a file that cannot be parsed is skipped."""
    prose = "\n".join(
        f"    Line {i} of a docstring that is long enough to be read." for i in range(6)
    )
    body = f'    """Begin.\n\n{prose}\n    >>> 1 + 1\n    """\n'
    code = f'"""Short."""\nraise SystemExit\n\nclass A:\n{body}'
    _file(tmp_path, "a.py", code)
    _file(tmp_path, "b.py", code)
    _file(tmp_path, "c.py", 'def broken(:\n    """' + prose)
    (tmp_path / "test").mkdir()
    _file(tmp_path / "test", "d.py", code.replace("Begin", "Tested"))
    text = builtin_text(tmp_path)
    assert text.count("Begin.") == 1
    assert " Line 5 of a docstring that is long enough to be read." in text
    assert ">>>" not in text and "Tested" not in text and "Short." not in text


def test_equal_arguments_give_equal_corpora(tmp_path: Path) -> None:
    """Pieces, digest and stream depend on sources and seed alone."""
    source = _file(tmp_path, "a.txt", "\f".join(_sentences(f"word{i}") for i in range(60)))
    one, second, other = load_corpus([source]), load_corpus([source]), load_corpus([source], seed=1)
    assert one == second
    assert one.validation != other.validation and one.digest != other.digest
    assert one.sources == (source,)
    first = list(islice(one.stream(3), 150))
    assert first == list(islice(second.stream(3), 150)) != list(islice(one.stream(4), 150))
    assert set(first[: len(one.train)]) == set(one.train)


def test_about_a_twentieth_is_held_out_by_document() -> None:
    """No document is on both sides, and nothing is lost."""
    texts = [_sentences(f"word{i}", 5 + i % 9) for i in range(200)]
    train, validation = split("\f".join(texts), seed=5)
    assert sorted(train + validation) == sorted(texts)
    assert 0.04 < sum(map(len, validation)) / sum(map(len, texts)) < 0.08


def test_held_out_documents_do_not_depend_on_their_order() -> None:
    """A document is chosen by its own words."""
    texts = [_sentences(f"word{i}") for i in range(40)]
    assert set(split("\f".join(texts))[1]) == set(split("\f".join(reversed(texts)))[1])


def test_a_long_document_does_not_swallow_the_held_out_part() -> None:
    """What is far over the quota is trained on."""
    validation = split("\f".join([_sentences("long", 500), _sentences("short")]))[1]
    assert validation == [_sentences("short")]


def test_a_single_document_is_trained_on() -> None:
    """There is nothing to hold out."""
    assert split(_sentences("only")) == ([_sentences("only")], [])


def test_wikitext_is_cut_before_its_titles() -> None:
    """Sections stay in their article, headings are kept, and the raw spacing too."""
    lobster, heron = documents(WIKI)
    assert lobster.startswith(" = Lobster = ") and " = = Habitat = = " in lobster
    assert heron.startswith(" = Heron = ")
    assert " @-@ " in lobster


def test_paragraphs_keep_all_words_and_the_size() -> None:
    """Runs end between paragraphs; a paragraph that is too long ends after a sentence."""
    text = "\n\n".join(_sentences(f"word{i}", 3 + i) for i in range(20))
    runs = paragraphs(text, 500)
    assert all(len(run) <= 500 for run in runs)
    assert " ".join(runs).split() == text.split()
    assert all(run.rstrip().endswith(".") for run in runs)


def test_detokenize_undoes_wikitext_and_nothing_else() -> None:
    """Text without its markers is left alone, odd spaces and all."""
    text = detokenize(WIKI)
    assert "weighs 0.7 – 2 kg (1,500 oz), a well-known fact." in text
    assert "It isn't red; it's blue." in text
    assert " = = Habitat = = " in text
    assert detokenize("Left , as ( it ) is .") == "Left , as ( it ) is ."


def test_detokenizing_is_asked_for(tmp_path: Path) -> None:
    """The default leaves raw text raw."""
    source = _file(tmp_path, "wiki.txt", WIKI)
    assert " @-@ " in "".join(load_corpus([source]).train + load_corpus([source]).validation)
    plain = load_corpus([source], detokenized=True)
    assert " @-@ " not in "".join(plain.train + plain.validation)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"text": "T", "context": "C"}, "T"),
        ({"context": "C", "question": "Q", "answers": ["A"]}, "C"),
        ({"instruction": "I", "input": "", "output": "O"}, "I\nO"),
        ({"question": "Q", "facts": ["F.", "G."], "answer": True}, "F. G."),
        ({"question": "Q", "answer": "A"}, "Q\nA"),
        ({"records": [["a", "b"]]}, ""),
        ({"text": None, "question": "Q", "answer": 7}, "Q"),
    ],
)
def test_text_of_a_row(row: dict[str, Any], text: str) -> None:
    """The fields that hold prose, joined."""
    assert row_text(row) == text


def test_folders_and_rows_are_read(tmp_path: Path) -> None:
    """A folder's files in order of name; a context that comes twice counts once."""
    rows = [{"context": _sentences("context"), "question": str(i)} for i in range(3)]
    _file(tmp_path, "b.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    _file(tmp_path, "a.txt", _sentences("plain"))
    _file(tmp_path, "c.md", _sentences("ignored"))
    corpus = load_corpus([str(tmp_path)])
    assert sorted(corpus.train + corpus.validation) == [_sentences("context"), _sentences("plain")]


def _hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[tuple[str, str, list[str]]]:
    asked: list[tuple[str, str, list[str]]] = []

    def snapshot_download(repo: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((repo, repo_type, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


def test_hub_data_sets_by_configuration_and_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only files whose path names both are read, whatever else the snapshot holds."""
    for name in ("small/train", "small/test", "large/train"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        _file(tmp_path, f"{name}.txt", _sentences(name))
    asked = _hub(monkeypatch, tmp_path)
    assert load_corpus(["hub:owner/set/small:train"]).train == (_sentences("small/train"),)
    assert asked == [
        (
            "owner/set",
            "dataset",
            [f"*small*train*{kind}" for kind in (".jsonl", ".parquet", ".txt")],
        )
    ]
    assert len(documents("\n\n".join(load_corpus(["hub:set"]).train))) > 0
    assert asked[1][0] == "set"


def test_a_hub_that_fails_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is kept, and the form of a reference shown."""

    def snapshot_download(*_: object, **__: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(InputError, match=r"owner/set is not available from the Hub: no route"):
        load_corpus(["hub:owner/set"])


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the error says what to install; with it the rows are read."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        load_corpus([str(tmp_path)])
    table = SimpleNamespace(to_pylist=lambda: [{"text": _sentences("row")}])
    fake = SimpleNamespace(read_table=lambda file: table)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", fake)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "pyarrow", SimpleNamespace(parquet=fake))  # type: ignore[arg-type]
    assert load_corpus([str(tmp_path)]).train == (_sentences("row"),)


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.jsonl", b'{"text": "x"}\n{', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b"[1]", r"a\.jsonl:1: a list found"),
        ("a.jsonl", b'{"records": []}', "no row of .* has a field that holds text"),
        ("a.txt", b"\xff\xfe", "is not UTF-8"),
        ("a.txt", b"Too short.", "holds no text that is long enough"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, found: str) -> None:
    """The error names the file, and the line where there is one."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=found):
        load_corpus([str(tmp_path / name)])


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    """No source, no file, an empty folder."""
    with pytest.raises(InputError, match="no text to fit on"):
        load_corpus([])
    with pytest.raises(InputError, match="no text at 'nowhere'"):
        load_corpus(["nowhere"])
    with pytest.raises(InputError, match="holds no text"):
        load_corpus([str(tmp_path)])
