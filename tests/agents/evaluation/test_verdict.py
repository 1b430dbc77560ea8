"""What is claimed of an arm is what its outcomes show, and no more."""

from dataclasses import replace

import numpy as np
import pytest

from unspoken.agents.evaluation.design import Design
from unspoken.agents.evaluation.outcome import Outcome
from unspoken.agents.evaluation.verdict import Verdict, verdicts


def outcomes(arm: str, scores: list[float]) -> list[Outcome]:
    return [
        Outcome(row=str(n), context=str(n), arm=arm, score=score) for n, score in enumerate(scores)
    ]


def judged(arms: dict[str, list[Outcome]], count: int, **settings) -> dict[str, Verdict]:
    design = Design(rows=count, contexts=count, arms=tuple(arms), **{"draws": 4000} | settings)
    text = outcomes("text", [float(n % 2) for n in range(count)])
    every = [one for group in arms.values() for one in group]
    return verdicts([*text, *every], design, [str(n) for n in range(count)])


def scores(count: int, right: float, seed: int = 0) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).random(count) < right]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (scores(200, 0.95), "better"),
        ([float(n % 2) for n in range(200)], "no worse"),
        (scores(200, 0.1), "worse"),
        ([float(n % 2 == (n > 58)) for n in range(200)], "not shown"),
    ],
    ids=["better", "no worse", "worse", "not shown"],
)
def test_each_verdict(values: list[float], kind: str) -> None:
    """The four kinds, of scores beside a text that is right every other time."""
    verdict = judged({"plan": outcomes("plan", values)}, 200)["plan"]
    assert verdict.kind == kind and verdict.settled
    assert (verdict.needs_rows is not None) == (kind == "not shown")


def test_few_rows_that_agree_show_nothing() -> None:
    """Twenty equal rows do not show that an arm is no worse; how many would is said."""
    verdict = judged({"plan": outcomes("plan", [float(n % 2) for n in range(20)])}, 20)["plan"]
    assert verdict.kind == "not shown"
    assert verdict.needs_rows is not None and 60 < verdict.needs_rows < 100
    assert "could be as bad as" in verdict.words and "no difference" not in verdict.words


def test_a_clear_case_ends_at_half() -> None:
    """With half of the rows done a plain win is settled; after a tenth nothing is."""
    half, tenth = outcomes("plan", [1.0] * 100), outcomes("plan", [1.0] * 20)
    settled = judged({"plan": half}, 200)["plan"]
    assert settled.kind == "better" and settled.settled and settled.rows == 100
    assert not judged({"plan": tenth}, 200)["plan"].settled


def test_a_verdict_that_was_settled_early_says_so() -> None:
    """Its figures are of the rows up to that look, though all rows were run."""
    verdict = judged({"plan": outcomes("plan", [1.0] * 200)}, 200)["plan"]
    assert verdict.rows < 200 and f"(settled after {verdict.rows} rows)" in verdict.words


def test_no_worse_is_worth_little_where_the_message_is_not_needed() -> None:
    """An agent alone that does as well is named; one that does worse is not."""
    same, low = [float(n % 2) for n in range(200)], [0.0] * 200
    for alone, named in ((same, True), (low, False)):
        arms = {"plan": outcomes("plan", same), "alone": outcomes("alone", alone)}
        found = judged(arms, 200)
        assert found["plan"].kind == "no worse"
        assert ("nor is alone shown worse" in found["plan"].words) == named
        assert "nor is" not in found["alone"].words


def test_more_rows_are_needed_than_there_were() -> None:
    """What so many contexts did not show needs one more at least."""
    values = [float(n % 2) for n in range(200)]
    values[1] = 0.0
    for count in range(76, 110, 4):
        found = judged({"plan": outcomes("plan", values[:count])}, count)["plan"]
        assert found.needs_rows is None or found.needs_rows > count


def test_worse_is_shared_among_all_arms() -> None:
    """An arm that left as no worse raises no other's chance to be called worse."""
    same = [float(n % 2) for n in range(200)]
    lost = list(same)
    for row in range(1, 29, 2):
        lost[row] = 0.0
    among = {name: outcomes(name, same) for name in "abcdefgh"}
    found = judged({**among, "plan": outcomes("plan", lost)}, 200, margin=0.04)
    single = judged({"plan": outcomes("plan", lost)}, 200, margin=0.04)
    assert all(found[name].kind == "no worse" for name in among)
    assert found["plan"].best > single["plan"].best


def test_several_arms_ask_for_more() -> None:
    """The same rows that show something of one arm do not where nine others are compared too."""
    wins = [float(n % 2) for n in range(200)]
    for row in range(110, 128, 2):
        wins[row] = 1.0
    wins[131] = 0.0  # 9 rows better, one worse
    alone = judged({"plan": outcomes("plan", wins)}, 200, margin=0.001)
    others = {f"other {n}": outcomes(f"other {n}", scores(200, 0.5, n)) for n in range(9)}
    among = judged({"plan": outcomes("plan", wins), **others}, 200, margin=0.001)
    assert alone["plan"].kind == "better"
    assert among["plan"].kind == "no worse"


def test_rows_that_fell_back_are_counted() -> None:
    """An arm that always fell back shows nothing of its channel; one that did partly says so."""
    same = outcomes("plan", [float(n % 2) for n in range(200)])
    fallen = [replace(one, fallbacks=("no bridge",), all_text=True) for one in same]
    every = judged({"plan": fallen}, 200)["plan"]
    assert every.kind == "not shown" and "every message" in every.words
    planned = [replace(one, all_text=True) for one in same]  # `auto` that chose text: no fallback
    planned[3] = replace(planned[3], error="too slow", all_text=False)
    assert judged({"plan": planned}, 200)["plan"].kind == "not shown"
    reused = [replace(one, arm="text+reuse") for one in planned]  # which is about text
    assert judged({"text+reuse": reused}, 200)["text+reuse"].kind == "no worse"
    part = judged({"plan": [*fallen[:50], *same[50:]]}, 200)["plan"]
    assert part.fell_back == 50 and "50 of 200 rows fell back" in part.words


def test_a_false_claim_is_rare_among_arms_and_looks() -> None:
    """Three arms lose the margin and are looked at three times: rarely is one called no worse."""
    random, claims, count = np.random.default_rng(1), 0, 80
    text = np.arange(count) % 2
    for _ in range(30):
        arms = {}
        for name in "abc":  # a right answer is lost in 3 of 10 rows, a wrong one put right in 2
            changed = random.random(count) < np.where(text == 1, 0.3, 0.2)
            arms[name] = outcomes(name, [float(value) for value in text ^ changed])
        found = judged(arms, count, draws=1500)
        claims += any(one.kind in ("no worse", "better") for one in found.values())
    assert claims <= 3  # one-sided alpha of 2.5 % is less than 1 of 30
