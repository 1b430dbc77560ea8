"""How good an answer is beside what is right: 0 to 1."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from math import isclose, isfinite
from typing import TYPE_CHECKING, Any

from unspoken.agents.evaluation.outcome import Outcome
from unspoken.agents.spec.problems import listed, suggest
from unspoken.channels.errors import InputError
from unspoken.channels.metrics import exact_match, f1, normalized
from unspoken.channels.storage.strict_json import parse_json

if TYPE_CHECKING:
    from unspoken.agents.workflow import Workflow

Measure = Callable[[Outcome], float]

SCORERS: Mapping[str, str] = {
    "exact": "1 where the answer is a right one, without case, punctuation and articles",
    "f1": "the words that the answer has in common with a right one",
    "choice": "1 where the likeliest of the agent's choices is a right one",
    "likelihood": "how likely the agent found the right ones of its choices",
    "numeric": "1 where the last number is the right one; numeric:0.01 lets it differ by so much",
    "regex": "1 where a right answer, a pattern, is found; regex:PATTERN compares what it finds",
    "fields": "the share of the right object's fields that the answer has right",
    "judge": "judge:MODEL: a model prefers it to text's answer, in either order",
}
"""Scorers by name. Beside them ``module:function`` is a Python function of answer and gold."""

_NUMBER = re.compile(
    r"(?<![\w.])[-+−]?[$€£]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:e[-+]?\d+)?"
)
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def scorer(name: str, flow: "Workflow | None" = None) -> Measure:
    """A scorer by its name.

    Args:
        name: One of `SCORERS`, or ``module:function``; not the judge, which compares two answers.
        flow: The workflow beside whose file a function's module is looked for.

    Raises:
        InputError: There is no such scorer, or the function may not run or is not there.
    """
    kind, _, setting = name.partition(":")
    if kind == "numeric":
        return _numeric(setting)
    if kind == "regex" and setting:
        return _found_by(setting)
    if not setting and kind in _PLAIN:
        return _PLAIN[kind]
    if flow is not None and kind not in SCORERS and _FUNCTION.fullmatch(name):
        return _of_function(name, flow.function(name, "scorer"))
    raise InputError(
        f"there is no scorer {name!r}",
        expected=f"{listed(SCORERS)}, or module:function",
        fix=suggest(kind, SCORERS),
    )


def scored(outcome: Outcome, measure: Measure) -> Outcome:
    """An outcome with its score; a run that failed has 0.

    Raises:
        InputError: The scorer cannot read it.
    """
    return replace(outcome, score=0.0 if outcome.error is not None else measure(outcome))


def sound(name: str, outcome: Outcome, score: float) -> float:
    """A score as it is.

    Raises:
        InputError: It is not between 0 and 1.
    """
    if not (isfinite(score) and 0 <= score <= 1):
        raise InputError(
            f"the scorer {name!r} gives {score} for row {outcome.row}", expected="0 to 1"
        )
    return score


def check_gold(name: str, golds: Iterable[tuple[str, object]], *, chooses: bool) -> None:
    """Refuse what a scorer cannot read, before any row runs.

    Args:
        name: The scorer's name; of others than `SCORERS` nothing is known.
        golds: Every row's name, and what is right there.
        chooses: Whether the agent that is scored has choices.

    Raises:
        InputError: What is right is none of what the scorer reads, or the agent has no choices.
    """
    kind = name.partition(":")[0]
    if kind not in SCORERS or kind == "judge":
        return
    measure = scorer(name)
    for row, gold in golds:
        weights = {"": 1.0} if chooses else None
        measure(Outcome(row=row, context=row, arm="", gold=gold, likelihoods=weights))


def right_ones(gold: object) -> list[str]:
    """The right answers as texts: of a list each, else the one."""
    return [_text(one) for one in (gold if isinstance(gold, list | tuple) else [gold])]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _exact(outcome: Outcome) -> float:
    return exact_match(outcome.answer, right_ones(outcome.gold))


def _f1(outcome: Outcome) -> float:
    return f1(outcome.answer, right_ones(outcome.gold))


def _weights(outcome: Outcome) -> Mapping[str, float]:
    if not outcome.likelihoods:
        raise InputError(
            f"row {outcome.row} has no likelihoods of choices",
            expected="an agent with `choices`, which does not think first",
            fix="give the agent `generate: {choices: [...]}`, or use the scorer exact",
        )
    return outcome.likelihoods


def _choice(outcome: Outcome) -> float:
    weights = _weights(outcome)
    return exact_match(max(weights, key=weights.__getitem__), right_ones(outcome.gold))


def _likelihood(outcome: Outcome) -> float:
    right = right_ones(outcome.gold)
    return min(sum(p for text, p in _weights(outcome).items() if exact_match(text, right)), 1.0)


def last_number(text: str) -> float | None:
    """The last number of a text; None without one."""
    found = _NUMBER.findall(text.lower())
    return float(re.sub(r"[,$€£]", "", found[-1]).replace("−", "-")) if found else None


def _numeric(setting: str) -> Measure:
    try:
        tolerance = float(setting or 0)
    except ValueError:
        tolerance = -1.0
    if not 0 <= tolerance < float("inf"):
        raise InputError(f"the tolerance is {setting!r}", expected="a number, such as numeric:0.01")

    def measure(outcome: Outcome) -> float:
        said = last_number(outcome.answer)
        wanted = [last_number(one) for one in right_ones(outcome.gold)]
        if None in wanted:
            raise InputError(
                f"row {outcome.row}: what is right holds no number", expected="rows of numbers"
            )
        return float(said is not None and any(_close(said, one, tolerance) for one in wanted))

    return measure


def _close(said: float, wanted: float | None, tolerance: float) -> bool:
    return wanted is not None and isclose(said, wanted, rel_tol=1e-9, abs_tol=tolerance + 1e-12)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"{pattern[:60]!r} is no regular expression: {error}", expected="one that Python reads"
        ) from error


def _regex(outcome: Outcome) -> float:
    patterns = map(_compiled, right_ones(outcome.gold))
    return float(any(pattern.search(outcome.answer) for pattern in patterns))


def _found_by(text: str) -> Measure:
    pattern = _compiled(text)

    def measure(outcome: Outcome) -> float:
        found = [match[1 if pattern.groups else 0] for match in pattern.finditer(outcome.answer)]
        last = found[-1] if found else None
        return 0.0 if last is None else exact_match(last, right_ones(outcome.gold))

    return measure


def _fields(outcome: Outcome) -> float:
    gold, data = outcome.gold, outcome.data
    if not isinstance(gold, Mapping) or not gold:
        raise InputError(
            f"row {outcome.row}: what is right is no object", expected="an object with fields"
        )
    if data is None:
        try:
            data = parse_json(outcome.answer)
        except ValueError:
            return 0.0
    shares = list(_agreements(gold, data))
    return sum(shares) / len(shares)


def _agreements(gold: object, data: object) -> "list[bool]":
    """For every field of the right object, and of the objects in it, whether it is right."""
    if isinstance(gold, Mapping) and gold:
        within = data if isinstance(data, Mapping) else {}
        return [same for key, part in gold.items() for same in _agreements(part, within.get(key))]
    return [_same(gold, data)]


def _same(gold: object, said: object) -> bool:
    if isinstance(gold, bool) or isinstance(said, bool):
        return gold is said
    if isinstance(gold, int | float) and isinstance(said, int | float):
        return isclose(gold, said, rel_tol=1e-9)
    if isinstance(gold, str) and isinstance(said, str):
        return normalized(gold) == normalized(said)
    if isinstance(gold, Sequence) and isinstance(said, Sequence):
        return len(gold) == len(said) and all(map(_same, gold, said))
    return gold == said


def _of_function(name: str, function: Callable[[str, Any], Any]) -> Measure:
    def measure(outcome: Outcome) -> float:
        try:
            score = float(function(outcome.answer, outcome.gold))
        except Exception as error:  # a scorer is somebody's program
            raise InputError(
                f"the scorer {name!r} fails on row {outcome.row}: {type(error).__name__}: {error}",
                expected="a function of answer and gold",
            ) from error
        return sound(name, outcome, score)

    return measure


_PLAIN: Mapping[str, Measure] = {
    "exact": _exact,
    "f1": _f1,
    "choice": _choice,
    "likelihood": _likelihood,
    "regex": _regex,
    "fields": _fields,
}
