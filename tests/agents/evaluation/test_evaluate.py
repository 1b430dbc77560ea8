"""`evaluate`: what is told, in which order rows run, and how an evaluation goes on."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from unspoken.agents import Agent, Workflow
from unspoken.agents.evaluation import Outcome, evaluate
from unspoken.agents.evaluation.setting import Beforehand, Clock, Progress
from unspoken.agents.testing import ScriptedModel
from unspoken.channels import InputError
from unspoken.channels.errors import StoreError

COLOURS = ("red", "green", "blue", "white")
ROWS = [{"text": f"Lamp {n} is {COLOURS[n % 4]}.", "gold": COLOURS[n % 4]} for n in range(8)]


def answer(agent: str, turn: int, prompt: str) -> str:
    return next((colour for colour in COLOURS if colour in prompt), "unknown")


def flow(model: ScriptedModel, question: str = "Which colour?") -> Workflow:
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    solver = Agent("solver", model, prompt=question)
    return Workflow("lamps", [reader, solver]).connect(reader, solver)


def lamps(model: ScriptedModel, **more: Any) -> Any:
    how: dict[str, Any] = {"map": {"text": "document"}, "arms": ["plan", "alone"], **more}
    return evaluate(flow(model), ROWS, **how)


def test_every_row_is_scored_under_every_arm() -> None:
    """What is set is told first, then every outcome; text is always among the arms."""
    told: list[Beforehand | Progress] = []
    given = lamps(ScriptedModel(answer), begin=told.append, tell=told.append)
    first, *rest = told
    assert isinstance(first, Beforehand) and list(first.arms) == ["text", "plan", "alone"]
    assert (first.design.rows, first.design.contexts, first.agent) == (8, 8, "solver")
    assert len(rest) == len(given.outcomes) == 24
    assert sorted(given.order) == [str(n) for n in range(1, 9)]
    scores = {arm: [o.score for o in given.outcomes if o.arm == arm] for arm in first.arms}
    assert scores == {"text": [1.0] * 8, "plan": [1.0] * 8, "alone": [0.0] * 8}
    assert given.verdicts["alone"].kind == "worse"
    assert given.to_dict()["verdicts"]["plan"]["difference"] == 0


def test_an_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    """Nothing runs twice; another arm is added; another workflow or row is refused."""
    model = ScriptedModel(answer)
    first = lamps(model, out=tmp_path, limit=3)
    asked = len(model.prompts["solver"])
    again = lamps(model, out=tmp_path, limit=3)
    assert again.outcomes == first.outcomes and len(model.prompts["solver"]) == asked
    more = lamps(model, out=tmp_path, limit=3, arms=["plan", "alone", "stranger"])
    assert len(more.outcomes) == 12 and len(model.prompts["solver"]) == asked + 3 + 1
    with pytest.raises(StoreError, match=re.escape("setting.margin was 0.05, and is 0.1")):
        lamps(model, out=tmp_path, limit=3, margin=0.1)
    other = flow(model, "What colour?")
    with pytest.raises(StoreError, match=re.escape("workflow.agents.solver.prompt")):
        evaluate(other, ROWS, map={"text": "document"}, out=tmp_path, limit=3)


def test_what_is_known_is_scored_by_the_scorer_as_it_is_now(tmp_path: Path) -> None:
    """No turn is taken again for it."""
    model = ScriptedModel(answer)
    lamps(model, out=tmp_path, limit=3, score=lambda outcome: 1.0)
    asked = len(model.prompts["solver"])
    again = lamps(model, out=tmp_path, limit=3, score=lambda outcome: 0.25)
    assert {one.score for one in again.outcomes} == {0.25}
    assert len(model.prompts["solver"]) == asked


def test_a_turn_is_kept_where_its_score_fails(tmp_path: Path) -> None:
    """It is scored in the next sitting, and a score out of range is refused."""
    model = ScriptedModel(answer)
    with pytest.raises(InputError, match="gives nan for row"):
        lamps(model, out=tmp_path, limit=1, arms=["text"], score=lambda outcome: float("nan"))
    asked = len(model.prompts["solver"])
    (one,) = lamps(model, out=tmp_path, limit=1, arms=["text"], score=lambda outcome: 1).outcomes
    assert one.score == 1.0 and len(model.prompts["solver"]) == asked


def test_a_row_that_failed_runs_again_in_the_next_sitting(tmp_path: Path) -> None:
    """What failed may have been the machine."""
    broken = True

    def reply(agent: str, turn: int, prompt: str) -> str:
        if broken:
            raise ValueError("asleep")
        return answer(agent, turn, prompt)

    model = ScriptedModel(reply)
    (one,) = lamps(model, out=tmp_path, limit=1, arms=["text"]).outcomes
    assert one.error and one.score == 0.0
    broken = False
    (one,) = lamps(model, out=tmp_path, limit=1, arms=["text"]).outcomes
    assert one.error is None and one.score == 1.0


def test_another_judge_is_another_evaluation(tmp_path: Path) -> None:
    """By its model and its words; what it said is kept."""
    model = ScriptedModel(answer)
    how: dict[str, Any] = {"score": f"judge:{next(iter(flow(model).load().models))}"}
    first = lamps(model, out=tmp_path, limit=2, **how)
    assert {one.score for one in first.outcomes if one.arm == "text"} == {0.5}
    begun = tmp_path / "eval.json"
    told = json.loads(begun.read_text(encoding="utf-8"))
    told["judge"]["prompt"] = "Which one?"
    begun.write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(StoreError, match=re.escape("judge.prompt was 'Which one?'")):
        lamps(model, out=tmp_path, limit=2, **how)


def test_what_a_scorer_cannot_read_is_refused_before_any_turn(tmp_path: Path) -> None:
    """And a margin that is not possible leaves no folder behind."""
    model = ScriptedModel(answer)
    for how, found in (
        ({"score": "numeric"}, "holds no number"),
        ({"score": "choice"}, "no likelihoods"),
        ({"margin": 2.0}, "margin is 2.0"),
    ):
        with pytest.raises(InputError, match=found):
            lamps(model, out=tmp_path / "out", **how)
    assert not model.prompts["solver"] and not (tmp_path / "out").exists()


def test_usual_arms_that_there_cannot_be_are_left_out() -> None:
    """With the reason, where nobody asked for them."""
    told: list[Any] = []
    model = ScriptedModel(answer)
    rows = [{"document": "Lamp is red.", "gold": "red", "id": str(n)} for n in range(2)]
    given = evaluate(flow(model), rows, begin=told.append)
    assert list(told[0].arms) == ["text", "text+reuse", "plan", "alone"]
    assert ("no arm stranger", "all rows are of one context") in told[0].facts()
    assert {one.context for one in given.outcomes} == {"1"} or {
        one.context for one in given.outcomes
    } == {"0"}


def test_a_function_may_score() -> None:
    """It may be awaited; a run that failed has 0 by any scorer."""

    async def half(outcome: Outcome) -> float:
        return 0.5

    def silent(agent: str, turn: int, prompt: str) -> str:
        if "white" in prompt:
            raise ValueError("no white")
        return "?"

    given = lamps(ScriptedModel(silent), arms=["text"], score=half)
    assert sorted(outcome.score for outcome in given.outcomes) == [0.0, 0.0, *[0.5] * 6]
    with pytest.raises(InputError, match="no scorer 'exactly'"):
        lamps(ScriptedModel(answer), score="exactly")


def test_what_is_left_is_told_once_every_arm_has_run() -> None:
    """By the mean of each arm."""
    clock = Clock({"text": 3, "plan": 3}, 6)
    assert clock.took("text", 2.0).seconds_left is None
    progress = clock.took("plan", 1.0)
    assert (progress.done, progress.total, progress.seconds_left) == (2, 6, 6.0)
