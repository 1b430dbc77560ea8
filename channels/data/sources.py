"""Where text comes from: what CPython carries, files, folders, the Hugging Face Hub."""

import json
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from unspoken.channels.data.builtin import builtin_text
from unspoken.channels.errors import InputError
from unspoken.channels.sequences import distinct

KINDS = (".jsonl", ".parquet", ".txt")
FIELDS = (
    ("text",),
    ("context",),
    ("instruction", "input", "output"),
    ("facts",),
    ("question", "answer"),
)
"""Fields of a row that hold its text: of the first set whose first field is filled."""


def read_source(source: str) -> str:
    """The text of one source; its documents, where it tells, are parted by form feeds.

    Args:
        source: ``builtin``; a ``.txt``, ``.jsonl`` or ``.parquet`` file (any other file is read as
            text); a folder of such files; or ``hub:NAME[/config][:split]``, a data set of the Hub.

    Raises:
        InputError: nothing there, or nothing that can be read.
    """
    if source == "builtin":
        return builtin_text()
    if source.startswith("hub:"):
        return _from_hub(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _join(sorted(file for file in path.rglob("*") if file.suffix in KINDS), source)
    if not path.is_file():
        raise InputError(
            f"no text at {source!r}",
            expected="`builtin`, a file, a folder, or `hub:NAME[/config][:split]`",
            fix="check the path; relative ones start at the current folder",
        )
    return _read(path)


def row_text(row: Mapping[str, Any]) -> str:
    """The text of a row of a data set, its fields joined by newlines; empty where it has none.

    The fields are ``text``; ``context``; ``instruction``, ``input`` and ``output``; ``facts``; or
    ``question`` and ``answer``.
    """
    for names in FIELDS:
        if row.get(names[0]):
            return "\n".join(filter(None, (_plain(row.get(name)) for name in names)))
    return ""


def _plain(value: object) -> str:
    """A string as it is, a list of strings as sentences; anything else is no text."""
    if isinstance(value, list):
        return " ".join(part.strip() for part in value if isinstance(part, str))
    return value.strip() if isinstance(value, str) else ""


def _join(files: list[Path], source: str) -> str:
    """The texts of several files, each a document of its own or several."""
    if not files:
        raise InputError(f"{source!r} holds no text", expected=f"files in {', '.join(KINDS)}")
    return "\f".join(map(_read, files))


def _read(file: Path) -> str:
    """The text of one file."""
    try:
        if file.suffix == ".parquet":
            texts = list(map(row_text, _parquet_rows(file)))
        elif file.suffix == ".jsonl":
            with file.open(encoding="utf-8") as lines:
                texts = [row_text(row) for _, row in json_objects(file, lines)]
        else:
            return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8: {error}", fix="convert it to UTF-8") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    joined = "\f".join(distinct(filter(None, texts)))  # SQuAD repeats its contexts
    if not joined:
        wanted = "; ".join(" + ".join(names) for names in FIELDS)
        raise InputError(f"no row of {file} has a field that holds text", expected=wanted)
    return joined


def json_objects(file: Path, lines: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects of a JSON Lines file, each with the number of its line; blank lines are none.

    Raises:
        InputError: naming file and line.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{file}:{number}: not JSON: {error}", expected="one JSON object a line"
            ) from error
        if not isinstance(row, dict):
            raise InputError(
                f"{file}:{number}: {json_kind(row)} found", expected="one JSON object a line"
            )
        yield number, row


def json_kind(value: object) -> str:
    """What JSON calls the value."""
    if isinstance(value, str) and not value.strip():
        return "an empty string"
    names = {str: "a string", list: "a list", dict: "an object", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


def _parquet_rows(file: Path) -> list[Mapping[str, Any]]:
    """The rows of a Parquet file, by way of pyarrow."""
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            f"{file.name} is a Parquet file, and pyarrow, which reads it, is not installed",
            fix="pip install pyarrow",
        ) from error
    try:
        rows: list[Mapping[str, Any]] = parquet.read_table(file).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise InputError(f"{file} cannot be read: {error}") from error
    return rows


def _from_hub(source: str) -> str:
    """The text files of a data set on the Hub whose paths name the configuration and the split."""
    from huggingface_hub import snapshot_download

    name, _, split = source.removeprefix("hub:").partition(":")
    owner, _, rest = name.partition("/")
    dataset, _, config = rest.partition("/")
    repo = f"{owner}/{dataset}" if dataset else owner
    patterns = [f"*{config}*{split}*{kind}" for kind in KINDS]
    try:
        folder = Path(snapshot_download(repo, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:
        raise InputError(
            f"the data set {repo} is not available from the Hub: {error}",
            expected="hub:NAME[/config][:split], as hub:owner/name/config:train",
            fix="check the name and the network, or download it and name the folder",
        ) from error
    files = {
        file for pattern in patterns for file in folder.rglob("*") if _fits(file, pattern, folder)
    }
    return _join(sorted(files), source)


def _fits(file: Path, pattern: str, folder: Path) -> bool:
    """Whether a file of the snapshot is one of those asked for; older snapshots may hold more."""
    from fnmatch import fnmatch

    return file.is_file() and fnmatch(file.relative_to(folder).as_posix(), pattern)


def read_text(file: Path) -> str:
    """A text file as it is.

    Raises:
        InputError: It cannot be read, or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{str(file)!r} cannot be read: {error}", expected="a text file in UTF-8"
        ) from error
