"""The rows of an evaluation: which column is which input, what is right, and what belongs together.

Rows about one context, such as several questions about one document, are not independent. So each
row says of which context it is, and statistics count contexts.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from blake3 import blake3

from unspoken.agents.spec.inputs import check_inputs
from unspoken.agents.spec.problems import listed, suggest
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.data.sources import json_objects
from unspoken.channels.errors import InputError

CONTEXT = "context"
_SHORT = 40
_PREFIX = "inputs."
_NOTHING = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRow:
    """A row.

    Attributes:
        id: Its name; no other row has it.
        context: Names the context that it shares with other rows.
        inputs: The workflow's inputs.
        gold: What is right; a list holds several right answers.
        topic: Names what it is about, where the rows say so; else empty.
    """

    id: str
    context: str
    inputs: Mapping[str, object]
    gold: object
    topic: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column is what; a dot in a name leads into an object, as in ``answers.text``.

    Attributes:
        inputs: Columns of inputs, each with the input's name; an input that no column is named for
            is read from the column that is called like it.
        gold: What is right.
        context: Which rows share a context; None for ``context`` where all rows have it, else every
            row has a context of its own.
        id: A name for each row; None for ``id`` where all rows have it, else its number.
        topic: What it is about; None for nothing.
    """

    inputs: Mapping[str, str] = field(default_factory=dict)
    gold: str = "gold"
    context: str | None = None
    id: str | None = None
    topic: str | None = None


def read_mapping(words: Iterable[str]) -> dict[str, str]:
    """Columns with their inputs, of words such as ``question=inputs.question``.

    Raises:
        InputError: A word of another form, or an input that two columns are named for.
    """
    mapping: dict[str, str] = {}
    for word in words:
        column, equals, name = word.partition("=")
        if not (column and equals and name.removeprefix(_PREFIX)):
            raise InputError(f"{word!r} maps no column", expected="COLUMN=inputs.NAME")
        mapping[column] = name
    return mapping


def read_rows(path: str | Path) -> list[Mapping[str, Any]]:
    """The objects of a JSON Lines file.

    Raises:
        InputError: It cannot be read, or holds no rows.
    """
    file = Path(path).expanduser()
    try:
        with file.open(encoding="utf-8") as lines:
            rows = [row for _, row in json_objects(file, lines)]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the rows cannot be read from {str(path)!r}: {error}",
            expected="a .jsonl file, one JSON object a line",
            fix="check the path",
        ) from error
    if not rows:
        raise InputError(f"{file} has no rows", expected="one JSON object a line")
    return rows


def make_rows(
    spec: WorkflowSpec,
    raw: Sequence[Mapping[str, Any]],
    columns: Columns,
    fixed: Mapping[str, object] | None = None,
    shared: Sequence[str] = (),
) -> tuple[EvalRow, ...]:
    """Rows for a workflow.

    Args:
        spec: The workflow.
        raw: Plain rows.
        columns: Which column is what.
        fixed: Inputs that all rows share.
        shared: Where no column says which rows share a context, those do that are equal in these
            inputs; the context is called as the first of them. With none, each row has its own.

    Raises:
        InputError: A column is missing, an input is of another type, or two rows have one name.
    """
    if not raw:
        raise InputError("there are no rows", expected="at least one row")
    sources = _sources(spec, raw, columns, fixed or {})
    every = {name: all(_at(row, name) is not _NOTHING for row in raw) for name in (CONTEXT, "id")}
    context = columns.context or (CONTEXT if every[CONTEXT] else None)
    named = columns.id or ("id" if every["id"] else None)
    rows, firsts = list[EvalRow](), dict[str, str]()
    for number, row in enumerate(raw, 1):
        given = {name: _column(row, column, number) for name, column in sources.items()}
        name = str(number) if named is None else str(_column(row, named, number))
        try:
            inputs = check_inputs(spec, {**(fixed or {}), **given})
        except InputError as error:
            raise InputError(
                f"row {number}: {error.found}", expected=error.expected, fix="see --map"
            ) from None
        alike = _digest([inputs[key] for key in shared]) if shared else name
        first = firsts.setdefault(alike, name)
        rows.append(
            EvalRow(
                id=name,
                context=first if context is None else short(_column(row, context, number)),
                inputs=inputs,
                gold=_column(row, columns.gold, number),
                topic="" if columns.topic is None else short(_column(row, columns.topic, number)),
            )
        )
    _require_distinct(rows)
    return tuple(rows)


def drawn(rows: Sequence[EvalRow], limit: int | None, seed: int) -> tuple[EvalRow, ...]:
    """The rows in the order in which they are run: all, or so many of them, drawn at random.

    A smaller limit of the same seed gives the beginning of a larger one, so what is known after a
    part of the rows is known of a random part.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit is {limit}", expected="1 or more rows")
    return tuple(Random(seed).sample(list(rows), len(rows))[:limit])


def short(value: object) -> str:
    """A value's name: itself where it is short, else its digest."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= _SHORT else blake3(text.encode()).hexdigest(length=8)


def digests_of(rows: Sequence[EvalRow]) -> dict[str, str]:
    """Of all that each row holds, by its name."""
    digests = {}
    for row in rows:
        digests[row.id] = _digest([row.context, row.topic, dict(row.inputs), row.gold])
    return digests


def _digest(told: object) -> str:
    text = json.dumps(told, sort_keys=True, default=str, ensure_ascii=False)
    return blake3(text.encode("utf-8", "surrogatepass")).hexdigest(length=8)


def _sources(
    spec: WorkflowSpec,
    raw: Sequence[Mapping[str, Any]],
    columns: Columns,
    fixed: Mapping[str, object],
) -> dict[str, str]:
    """Every input with its column, less those that are fixed or keep their default."""
    sources: dict[str, str] = {}
    for column, named in columns.inputs.items():
        name = named.removeprefix(_PREFIX)
        if name not in spec.inputs:
            raise InputError(
                f"column {column!r} is mapped to input {name!r}, which the workflow has not",
                expected=listed(spec.inputs) or "a workflow with inputs",
                fix=suggest(name, spec.inputs),
            )
        if name in sources:
            raise InputError(
                f"columns {sources[name]!r} and {column!r} are both mapped to input {name!r}",
                expected="one column for an input",
            )
        sources[name] = column
    for name, declared in spec.inputs.items():
        if name in sources or name in fixed:
            continue
        if any(_at(row, name) is not _NOTHING for row in raw):
            if name in (columns.gold, columns.gold.partition(".")[0]):
                raise InputError(
                    f"input {name!r} would be read from the column of what is right",
                    expected="prompts that do not hold the answer",
                    fix=f"give the input with -i, or map it all the same: --map {name}=inputs."
                    f"{name}",
                )
            sources[name] = name
        elif declared.required:
            raise InputError(
                f"input {name!r} has no column, and the rows have none of its name",
                expected=f"one of the columns {listed(raw[0])}",
                fix=f"map a column: --map COLUMN=inputs.{name}",
            )
    return sources


def _at(row: Mapping[str, Any], column: str) -> Any:
    """A column's value, by its whole name or along its dots; `_NOTHING` where there is none."""
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _NOTHING
        value = value[part]
    return value


def _column(row: Mapping[str, Any], column: str, number: int) -> Any:
    value = _at(row, column)
    if value is _NOTHING or value is None:
        raise InputError(
            f"row {number} has no column {column!r}",
            expected=f"one of {listed(row)}",
            fix=suggest(column, row),
        )
    return value


def _require_distinct(rows: Sequence[EvalRow]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise InputError(
                f"two rows are called {row.id!r}",
                expected="a name of its own for each row",
                fix="name another column with --id",
            )
        seen.add(row.id)
