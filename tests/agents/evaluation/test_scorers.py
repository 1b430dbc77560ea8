"""Scores of answers beside what is right."""

import re
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from unspoken.agents import Workflow
from unspoken.agents.evaluation.judge import Judge
from unspoken.agents.evaluation.outcome import Outcome
from unspoken.agents.evaluation.scorers import last_number, scored, scorer
from unspoken.agents.testing import ScriptedModel
from unspoken.channels.errors import InputError

DATA = {"year": 1911.0, "town": {"name": "the Fen", "big": True}}


def outcome(answer: str = "", gold: object = None, **more) -> Outcome:
    return Outcome(row="1", context="1", arm="plan", answer=answer, gold=gold, **more)


@pytest.mark.parametrize(
    ("name", "answer", "gold", "score"),
    [
        ("exact", "The year 1911.", "year 1911", 1),
        ("exact", "1911", ["1910", 1911], 1),
        ("exact", "in 1911", "1911", 0),
        ("f1", "in 1911", "1911", 2 / 3),
        ("numeric", "5 and 6, so 1,062 in all", "#### 1062", 1),
        ("numeric", "It is $5.00.", 5, 1),
        ("numeric", "-3", 3, 0),
        ("numeric", "none", 3, 0),
        ("numeric:0.1", "2.95", 3, 1),
        ("numeric", "2.95", 3, 0),
        ("regex", "the 7 of May", r"\b7\b.*May", 1),
        ("regex:answer: (\\w+)", "answer: no. answer: Yes", "yes", 1),
        ("regex:answer: (\\w+)", "yes", "yes", 0),
        ("fields", "no JSON", DATA, 0),
        ("fields", '{"year": 1911, "town": {"name": "Fen", "big": false}}', DATA, 2 / 3),
    ],
)
def test_scores(name: str, answer: str, gold: object, score: float) -> None:
    """Each scorer, on answers that are right, partly right and wrong."""
    assert scorer(name)(outcome(answer, gold)) == pytest.approx(score)


def test_fields_of_an_answer_with_a_schema() -> None:
    """What the answer says as data is compared; a field that is missing is wrong."""
    answer = outcome("x", DATA, data={"year": 1911, "town": None})
    assert scorer("fields")(answer) == pytest.approx(1 / 3)


def test_choices_by_likelihood() -> None:
    """The likeliest choice is compared, or the right one's likelihood is the score."""
    answer = outcome("no", "yes", likelihoods={"yes": 0.4, "no": 0.6})
    assert scorer("choice")(answer) == 0.0
    assert scorer("likelihood")(answer) == pytest.approx(0.4)
    with pytest.raises(InputError, match="likelihoods"):
        scorer("choice")(outcome("no", "yes"))


@pytest.mark.parametrize(
    ("text", "number"),
    [("12,345.6 km", 12345.6), ("−7", -7.0), ("x2 is 10-12.", 12.0), ("a", None), ("1e3", 1000.0)],
)
def test_the_last_number(text: str, number: float | None) -> None:
    """Numbers as people write them."""
    assert last_number(text) == number


def test_a_run_that_failed_scores_nothing() -> None:
    """Whatever it had written."""
    assert scored(outcome("1911", "1911", error="out of time"), scorer("exact")).score == 0.0


@pytest.mark.parametrize("name", ["exakt", "numeric:much", "regex:(", "judge", "os:getcwd"])
def test_unknown_scorers_are_refused(name: str) -> None:
    """Names, settings and patterns that are none; a program where there is no workflow."""
    with pytest.raises(InputError):
        scorer(name)


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    """A function beside the file scores, where the file's programs may run, and only there."""
    (tmp_path / "mine.py").write_text(
        "def half(answer, gold):\n    return 0.5 * (answer == gold)\n"
    )
    file = tmp_path / "workflow.yaml"
    file.write_text("name: a\nmodels: {m: x}\nagents: {a: {model: m, prompt: b}}\n")
    with pytest.raises(InputError, match="program"):
        scorer("mine:half", Workflow.from_yaml(file))
    measure = scorer("mine:half", Workflow.from_yaml(file, allow_tools=True))
    assert measure(outcome("a", "a")) == 0.5
    with pytest.raises(InputError, match=r"2\.0 for row"):
        scorer("builtins:pow", Workflow.from_yaml(file, allow_tools=True))(outcome(2, 1))  # type: ignore[arg-type]


def prefers(choice) -> Judge:
    """A judge that picks by the two answers."""

    def answer(agent: str, turn: int, prompt: str) -> str:
        first, second = re.findall(r"Answer [AB]: (\w+)", prompt)
        return "A" if choice(first, second) else "B"

    return Judge(ScriptedModel(answer))


@pytest.mark.parametrize(
    ("choice", "score"),
    [
        (lambda first, second: first == "good", 1.0),
        (lambda first, second: first == "bad", 0.0),
        (lambda first, second: True, 0.5),
        (lambda first, second: False, 0.5),
    ],
    ids=["prefers it", "prefers text", "always the first", "always the second"],
)
def test_a_judge_is_asked_in_both_orders(choice, score: float) -> None:
    """Only a preference that holds in both places counts."""
    asked = prefers(choice).score, outcome("good"), outcome("bad"), {"question": "Which?"}
    assert anyio.run(*asked) == score


def test_equal_answers_are_even() -> None:
    """Without a question to the model; a run that failed loses."""
    judge = prefers(lambda first, second: 1 / 0)
    same = outcome("good")
    assert anyio.run(judge.score, same, same, {}) == 0.5
    assert anyio.run(judge.score, replace(same, error="no"), same, {}) == 0.0


def test_a_judge_that_fails_on_a_row_finds_it_even() -> None:
    """Such as where two answers are too long for it; no arm is to blame."""

    def fails(first: str, second: str) -> bool:
        raise ValueError("too long")

    judge = prefers(fails)
    assert anyio.run(judge.score, outcome("good"), outcome("bad"), {}) == 0.5
