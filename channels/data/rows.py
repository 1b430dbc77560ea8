"""Rows to evaluate on: read from files, or made from nothing."""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from unspoken.channels.data.passages import fact_passages, unseen_passages
from unspoken.channels.data.recall import recall_records
from unspoken.channels.data.sources import json_kind, json_objects
from unspoken.channels.data.trivia import common_question, kept_back
from unspoken.channels.errors import InputError
from unspoken.channels.metrics import exact_match, f1
from unspoken.channels.sequences import distinct

__all__ = [
    "ChoiceRow",
    "QaRow",
    "RecallRow",
    "builtin_choice",
    "builtin_qa",
    "builtin_recall",
    "exact_match",
    "f1",
    "question_prompt",
    "read_choice",
    "read_qa",
    "read_recall",
    "sample",
    "unseen_contexts",
]


def question_prompt(question: str) -> str:
    """How a question about the message is put."""
    return f"\n\nQuestion: {question}\nAnswer:"


Row = TypeVar("Row")


OPTION = re.compile(r"\bAnswer(\d+):")


ASKED = "Please choose the correct answer to the question:"


CHOICE_SHAPE = f'"{ASKED} … Answer1: … Answer2: … Answer format: answer1/answer2", 2 to 9 options'


@dataclass(frozen=True, slots=True)
class QaRow:
    """A question about a context, and its right answers."""

    context: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RecallRow:
    """Records of a key and a value, and the one that is asked for."""

    records: tuple[tuple[str, str], ...]
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """A question, its options, and the index of the right one."""

    question: str
    options: tuple[str, ...]
    answer: int


class _BadRow(Exception):
    """A row that is not as it should be."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(found)
        self.found, self.expected = found, expected


def read_qa(path: str | Path) -> list[QaRow]:
    """Rows of ``context``, ``question`` and ``answers``: strings, or SQuAD's ``{"text": […]}``.

    Raises:
        InputError: naming file, line and field.
    """
    return _read(path, _qa_row)


def read_recall(path: str | Path) -> list[RecallRow]:
    """Rows of ``records`` (pairs of key and value), ``key`` and ``value``.

    Raises:
        InputError: naming file, line and field.
    """
    return _read(path, _recall_row)


def read_choice(path: str | Path) -> list[ChoiceRow]:
    """Rows of ``instruction``, the question with its options, and ``answer``, such as ``answer2``.

    Raises:
        InputError: naming file, line and field.
    """
    return _read(path, _choice_row)


def builtin_qa(n: int, seed: int = 0) -> list[QaRow]:
    """`n` questions about synthetic passages, one passage each."""
    rng = random.Random(seed)
    rows = []
    for _, passage in zip(range(n), fact_passages(seed), strict=False):
        asked = rng.choice(passage.questions)
        rows.append(QaRow(passage.text, asked.question, (asked.answer,)))
    return rows


def unseen_contexts(n: int, seed: int = 0) -> list[QaRow]:
    """All questions about `n` synthetic passages of kinds that no bridge is fitted on."""
    passages = islice(unseen_passages(seed), n)
    return [
        QaRow(passage.text, asked.question, (asked.answer,))
        for passage in passages
        for asked in passage.questions
    ]


def builtin_recall(n: int, seed: int = 0) -> list[RecallRow]:
    """`n` rows of eight records with random UUIDs as keys and values."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        records, key, value = recall_records(rng, keys="uuid", values="uuid")
        rows.append(RecallRow(tuple((a, b) for a, b in records), key, value))
    return rows


def builtin_choice(n: int, seed: int = 0) -> list[ChoiceRow]:
    """`n` different questions of common knowledge that no fuser is trained on; four options each.

    Raises:
        InputError: more than there are.
    """
    rng = random.Random(seed)
    rows: dict[tuple[str, str], ChoiceRow] = {}
    for _ in range(100 * n):
        if len(rows) == n:
            break
        row = ChoiceRow(*common_question(rng))
        asked = row.question, row.options[row.answer]
        if kept_back(*asked):
            rows.setdefault(asked, row)
    if len(rows) < n:
        raise InputError(f"{n} questions asked for", expected=f"at most some {len(rows)}")
    return list(rows.values())


def sample(rows: Sequence[Row], n: int, seed: int = 0) -> list[Row]:
    """`n` of the rows, or all where there are fewer, in the order of the file."""
    chosen = random.Random(seed).sample(range(len(rows)), min(n, len(rows)))
    return [rows[i] for i in sorted(chosen)]


def _read(path: str | Path, parse: Callable[[Mapping[str, Any]], Row]) -> list[Row]:
    """Every row of a JSON Lines file."""
    file = Path(path).expanduser()
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as error:
        raise InputError(f"no file at {str(path)!r}", expected="a .jsonl file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}", expected="UTF-8 text") from error
    rows = []
    for number, row in json_objects(file, lines):
        try:
            rows.append(parse(row))
        except _BadRow as bad:
            raise InputError(f"{file}:{number}: {bad.found}", expected=bad.expected) from None
    if not rows:
        raise InputError(f"{file} has no rows", expected="one JSON object a line")
    return rows


def _field(row: Mapping[str, Any], name: str) -> Any:
    """A field that must be there."""
    if name not in row:
        fields = ", ".join(f"`{field}`" for field in row) or "none"
        raise _BadRow(f"no field `{name}`; found {fields}", f"a field `{name}`")
    return row[name]


def _string(row: Mapping[str, Any], name: str) -> str:
    """A field that must be a string with something in it."""
    value = _field(row, name)
    if not isinstance(value, str) or not value.strip():
        raise _BadRow(f"`{name}` is {json_kind(value)}", f"`{name}`: a string that is not empty")
    return value


def _qa_row(row: Mapping[str, Any]) -> QaRow:
    """One row of questions about a context."""
    context, question = _string(row, "context"), _string(row, "question")
    answers = _field(row, "answers")
    if isinstance(answers, dict):
        answers = answers.get("text")
    shape = '`answers`: strings, as ["308"], or {"text": ["308"]}'
    if not isinstance(answers, list) or not answers:
        empty = answers == []
        raise _BadRow(
            f"`answers` is {'an empty list' if empty else json_kind(row['answers'])}", shape
        )
    for place, answer in enumerate(answers):
        if not isinstance(answer, str) or not answer.strip():
            raise _BadRow(f"`answers[{place}]` is {json_kind(answer)}", shape)
    return QaRow(context, question, tuple(distinct(answers)))


def _recall_row(row: Mapping[str, Any]) -> RecallRow:
    """One row of records."""
    pairs = _field(row, "records")
    shape = "`records`: pairs of strings, as [[key, value], …]"
    if not isinstance(pairs, list) or not pairs:
        raise _BadRow(f"`records` is {'an empty list' if pairs == [] else json_kind(pairs)}", shape)
    records: list[tuple[str, str]] = []
    for place, pair in enumerate(pairs):
        if not (isinstance(pair, list) and [type(part) for part in pair] == [str, str]):
            raise _BadRow(f"`records[{place}]` is {json.dumps(pair)[:60]}", shape)
        records.append((pair[0], pair[1]))
    key, value = _string(row, "key"), _string(row, "value")
    if len(dict(records)) != len(records):
        raise _BadRow("a key stands twice in `records`", "different keys")
    if dict(records).get(key) != value:
        held = "which `records` give another value" if key in dict(records) else "not in `records`"
        raise _BadRow(f"`key` is {key!r}, {held}", "a key of `records` and its value")
    return RecallRow(tuple(records), key, value)


def _choice_row(row: Mapping[str, Any]) -> ChoiceRow:
    """One row with options."""
    text, answer = _string(row, "instruction"), _string(row, "answer")
    body = text.rpartition("Answer format:")[0]
    question, *parts = OPTION.split(body)
    question = question.replace(ASKED, "", 1).strip()
    numbers, options = parts[::2], tuple(part.strip() for part in parts[1::2])
    in_order = numbers == [str(i + 1) for i in range(len(numbers))]
    if not question or not 2 <= len(options) <= 9 or not all(options) or not in_order:
        listed = f"numbered {', '.join(numbers)}" if numbers else "none"
        raise _BadRow(f"`instruction` has {len(options)} options ({listed})", CHOICE_SHAPE)
    place = re.fullmatch(r"answer([1-9])", answer.strip().lower())
    if not place or int(place[1]) > len(options):
        raise _BadRow(f"`answer` is {answer!r}", f"answer1 to answer{len(options)}")
    return ChoiceRow(question, options, int(place[1]) - 1)
