"""Rows to evaluate on: files in, errors that help, and rows made from nothing."""

import json
from collections.abc import Callable, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import pytest

from unspoken.channels.bridges.fit.fuse_samples import draw_fuse_samples
from unspoken.channels.data.rows import (
    ChoiceRow,
    QaRow,
    RecallRow,
    builtin_choice,
    builtin_qa,
    builtin_recall,
    exact_match,
    f1,
    read_choice,
    read_qa,
    read_recall,
    sample,
)
from unspoken.channels.errors import InputError

QA: dict[str, Any] = {
    "id": "1",
    "context": "It has 308 points.",
    "question": "How many?",
    "answers": ["308"],
}
RECALL: dict[str, Any] = {"records": [["a", "1"], ["b", "2"]], "key": "b", "value": "2"}
CHOICE: dict[str, Any] = {
    "instruction": "Please choose the correct answer to the question: Predators eat\n\n"
    "Answer1: lions Answer2: bunnies Answer3: grass\n\nAnswer format: answer1/answer2/answer3",
    "input": "",
    "output": "the correct answer is answer2",
    "answer": "answer2",
}
Reader = Callable[[str | Path], Sequence[object]]


def _file(folder: Path, *rows: object) -> Path:
    file = folder / "rows.jsonl"
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_questions_are_read(tmp_path: Path) -> None:
    """Answers as strings or as SQuAD has them; blank lines are nothing; doubles are one."""
    squad = {**QA, "answers": {"text": ["308", "308", "over 300"], "answer_start": [1, 1, 2]}}
    rows = read_qa(_file(tmp_path, QA, "", squad))
    assert rows[0] == QaRow("It has 308 points.", "How many?", ("308",))
    assert rows[1].answers == ("308", "over 300")


def test_records_are_read(tmp_path: Path) -> None:
    """Pairs in their order."""
    assert read_recall(_file(tmp_path, RECALL)) == [RecallRow((("a", "1"), ("b", "2")), "b", "2")]


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_options_are_read(tmp_path: Path, count: int) -> None:
    """However many there are, and with line breaks and colons inside."""
    options = tuple(f"option {i}: of many" for i in range(count))
    text = " ".join(f"Answer{i + 1}: {option}" for i, option in enumerate(options))
    asked = "Please choose the correct answer to the question: One line.\n\nWhich one?"
    form = "/".join(f"answer{i + 1}" for i in range(count))
    row = {"instruction": f"{asked}\n\n{text}\n\nAnswer format: {form}", "answer": f"answer{count}"}
    assert read_choice(_file(tmp_path, row)) == [
        ChoiceRow("One line.\n\nWhich one?", options, count - 1)
    ]


def _with(row: dict[str, Any], **changes: object) -> dict[str, Any]:
    return {key: value for key, value in {**row, **changes}.items() if value is not ...}


BAD: list[tuple[Reader, object, str, str]] = [
    (read_qa, "{", "not JSON", "one JSON object a line"),
    (read_qa, "[]", "a list found", "one JSON object a line"),
    (
        read_qa,
        _with(QA, context=...),
        "no field `context`; found `id`, `question`, `answers`",
        "`context`",
    ),
    (read_qa, _with(QA, question=" "), "`question` is an empty string", "not empty"),
    (read_qa, _with(QA, context=3), "`context` is a number", "not empty"),
    (read_qa, _with(QA, answers="308"), "`answers` is a string", '["308"]'),
    (read_qa, _with(QA, answers=[]), "`answers` is an empty list", '["308"]'),
    (
        read_qa,
        _with(QA, answers={"answer_start": [3]}),
        "`answers` is an object",
        '{"text": ["308"]}',
    ),
    (read_qa, _with(QA, answers=["308", None]), "`answers[1]` is null", '["308"]'),
    (read_recall, _with(RECALL, records={}), "`records` is an object", "[[key, value]"),
    (read_recall, _with(RECALL, records=[]), "`records` is an empty list", "[[key, value]"),
    (read_recall, _with(RECALL, records=[["a"]]), '`records[0]` is ["a"]', "[[key, value]"),
    (
        read_recall,
        _with(RECALL, records=[["b", "2"], ["a", 1]]),
        '`records[1]` is ["a", 1]',
        "pairs of strings",
    ),
    (read_recall, _with(RECALL, key="c"), "`key` is 'c', not in `records`", "a key of `records`"),
    (read_recall, _with(RECALL, value="1"), "give another value", "a key of `records`"),
    (read_recall, _with(RECALL, value=...), "no field `value`", "`value`"),
    (
        read_recall,
        _with(RECALL, records=[["b", "2"], ["b", "2"]]),
        "a key stands twice",
        "different keys",
    ),
    (read_choice, _with(CHOICE, answer="answer4"), "`answer` is 'answer4'", "answer1 to answer3"),
    (read_choice, _with(CHOICE, answer=2), "`answer` is a number", "not empty"),
    (read_choice, _with(CHOICE, answer="bunnies"), "`answer` is 'bunnies'", "answer1 to answer3"),
    (
        read_choice,
        _with(CHOICE, instruction="Why?"),
        "`instruction` has 0 options (none)",
        "Answer format",
    ),
    (
        read_choice,
        _with(CHOICE, instruction=CHOICE["instruction"].replace("Answer2:", "Answer4:")),
        "(numbered 1, 4, 3)",
        "Answer1: … Answer2:",
    ),
    (read_choice, _with(CHOICE, instruction=...), "no field `instruction`", "`instruction`"),
]
GOOD: dict[Reader, dict[str, Any]] = {read_qa: QA, read_recall: RECALL, read_choice: CHOICE}


@pytest.mark.parametrize(("read", "row", "found", "expected"), BAD)
def test_bad_rows_are_named(
    tmp_path: Path, read: Reader, row: object, found: str, expected: str
) -> None:
    """File, line, what was found and what was expected."""
    file = _file(tmp_path, GOOD[read], "", row)
    with pytest.raises(InputError) as caught:
        read(file)
    assert caught.value.found.startswith(f"{file}:3: ")
    assert found in caught.value.found
    assert expected in caught.value.expected


@pytest.mark.parametrize("read", GOOD, ids=lambda read: read.__name__)
def test_files_without_rows(tmp_path: Path, read: Reader) -> None:
    """A file that is not there, empty, or not text."""
    with pytest.raises(InputError, match="no file at 'nowhere'"):
        read("nowhere")
    with pytest.raises(InputError, match="has no rows"):
        read(_file(tmp_path, ""))
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "rows.jsonl")


def test_builtin_questions() -> None:
    """As many as asked for, answers in their contexts, equal for equal seeds."""
    rows = builtin_qa(40, seed=3)
    assert len({row.context for row in rows}) == 40
    assert all(row.answers[0] in row.context for row in rows)
    assert rows == builtin_qa(40, seed=3) != builtin_qa(40, seed=4)


def test_builtin_records() -> None:
    """Eight records a row, as the shared evaluation sets have."""
    rows = builtin_recall(20, seed=3)
    assert all(len(row.records) == 8 and dict(row.records)[row.key] == row.value for row in rows)
    assert rows == builtin_recall(20, seed=3) != builtin_recall(20, seed=4)


def test_builtin_choices() -> None:
    """Four different options, the right one at any place, no question twice."""
    rows = builtin_choice(200, seed=3)
    assert len({(row.question, row.options[row.answer]) for row in rows}) == 200
    assert all(len(set(row.options)) == 4 for row in rows)
    places = [sum(row.answer == place for row in rows) for place in range(4)]
    assert min(places) > 25
    assert rows == builtin_choice(200, seed=3) != builtin_choice(200, seed=4)
    assert not any("_" in option for row in rows for option in row.options)


def test_no_fuser_is_trained_on_a_builtin_choice() -> None:
    """What the built-in rows ask, the samples never ask."""
    asked = {(row.question, row.options[row.answer]) for row in builtin_choice(200)}
    samples = (
        sample
        for sample in islice(draw_fuse_samples(repeat("one word " * 200), 0), 3000)
        if "choice" in {target.kind for target in sample.targets}
    )
    trained = [
        (question, sample.targets[0].answer.strip())
        for sample in samples
        for question, _ in asked
        if question in sample.text
    ]
    assert trained, "some questions stand with other answers"
    assert not asked & set(trained)


def test_samples_keep_the_order() -> None:
    """A subset in the order of the file; all of it where there is no more."""
    chosen = sample(range(100), 10, seed=1)
    assert (
        chosen == sorted(chosen) == sample(range(100), 10, seed=1) != sample(range(100), 10, seed=2)
    )
    assert sample("abc", 5) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "overlap"),
    [
        ("The Denver Broncos!", ["Denver Broncos"], 1.0, 1.0),
        ("Broncos", ["Denver Broncos"], 0.0, 2 / 3),
        ("in 1887 or so", ["1887", "no"], 0.0, 0.4),
        ("", ["x"], 0.0, 0.0),
        ("the", ["a"], 1.0, 1.0),
        ("to to", ["to be"], 0.0, 0.5),
        ("x", [], 0.0, 0.0),
    ],
)
def test_scores(prediction: str, answers: list[str], exact: float, overlap: float) -> None:
    """As the SQuAD script counts."""
    assert exact_match(prediction, answers) == exact
    assert f1(prediction, answers) == pytest.approx(overlap)
