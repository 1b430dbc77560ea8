"""What runs are foretold to take, beside what their reports say they took."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flows import DOCUMENT, QUESTION, own_cache, reader_solver

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.bench import predictions
from unspoken.agents.costs import calibrate
from unspoken.agents.costs.pace import Pace
from unspoken.agents.costs.rounds import Member, taken_by
from unspoken.agents.costs.store import CostStore, Lengths
from unspoken.agents.costs.work import TurnWork
from unspoken.agents.planning.forecast import Calibration, Forecast
from unspoken.agents.testing import FakeBridge, tiny_model
from unspoken.channels import ProjectedCacheChannel
from unspoken.channels.storage.side import pair_digest

CALIBRATION = Calibration(at="2026-01-01 00:00", processor="none", threads=1, dtype="float32")
PACE = Pace(
    prefill=((1, 1.0), (101, 11.0)),
    behind=0.0,
    decode=((1, 1.0), (2, 1.2)),
    behind_step=0.0,
    reuse=0.0,
    splice=0.0,
    packet=0.0,
    batches=True,
    calibration=CALIBRATION,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    with own_cache(tmp_path_factory.mktemp("cache")):
        yield tiny_model()


@pytest.fixture
def store(tmp_path: Path, model: LocalModel) -> CostStore:
    store = CostStore(tmp_path)
    store.keep_pace(model, PACE)
    return store


def member(*waits: str, needed: int | None = None, **work: float) -> Member:
    return Member(
        works=(TurnWork(**work),),  # type: ignore[arg-type]  # figures alone
        waits=frozenset(waits),
        needed=len(waits) if needed is None else needed,
        pace=PACE,
        model="one",
        device=torch.device("cpu"),
    )


def seconds(members: Mapping[str, Member]) -> float:
    return taken_by(members).seconds


def test_agents_after_each_other_take_the_sum_and_beside_each_other_less() -> None:
    """Eleven steps of two turns at 1.2 s are quicker than twice eleven at 1 s."""
    work = {"prompt": 1.0, "computed": 1.0, "steps": 10.0}
    one = seconds({"a": member(**work)})
    row = seconds({"a": member(**work), "b": member("a", **work)})
    beside = seconds({"a": member(**work), "b": member(**work)})
    assert one == pytest.approx(11, abs=0.1)
    assert row == pytest.approx(2 * one)
    assert 12 < beside < 14


def test_a_join_of_the_first_waits_for_no_other() -> None:
    """The reader of two starts with the quick one where it needs one, else with the slow one."""
    quick, slow = {"prompt": 1.0, "computed": 1.0}, {"prompt": 1.0, "computed": 1.0, "steps": 30.0}
    members = {"quick": member(**quick), "slow": member(**slow)}
    last = {"prompt": 1.0, "computed": 1.0, "steps": 10.0}
    first = seconds({**members, "reader": member("quick", "slow", needed=1, **last)})
    both = seconds({**members, "reader": member("quick", "slow", **last)})
    assert both - first > 5


def test_a_pace_comes_back_as_it_was_kept(store: CostStore, model: LocalModel) -> None:
    """It is one of this model and machine; what cannot be read is as if it were not there."""
    assert store.pace(model) == PACE
    assert store.pace(tiny_model(1)) is None
    (file,) = store.root.glob("pace-*.json")
    file.write_text('{"format": 1, "prefill": 3}', encoding="utf-8")
    assert store.pace(model) is None


def forecast_of(flow: Workflow, store: CostStore, inputs: Mapping[str, object]) -> Forecast:
    flow.costs = store
    forecast = flow.plan(inputs).forecast
    assert forecast is not None
    return forecast


def items_flow(model: LocalModel) -> Workflow:
    each = Agent("each", model, prompt="{{ item }} is", for_each="inputs.rows")
    judge = Agent("judge", model, prompt="so?", generate={"max_new_tokens": 3})
    return Workflow("items", [each, judge], inputs={"rows": "list"}).connect("each", "judge")


def chain_flow(model: LocalModel) -> Workflow:
    agents = [Agent(name, model, prompt=f"now {name}") for name in ("one", "two", "three")]
    flow = Workflow("chain", agents)
    return flow.connect("one", "two", share="context").connect("two", "three", share="context")


ASKED = {"document": DOCUMENT, "question": QUESTION}
FLOWS: dict[str, tuple[Any, dict[str, object]]] = {
    "continued": (lambda model: reader_solver(model, model), ASKED),
    "by text": (lambda model: reader_solver(model, model, "text"), ASKED),
    "spliced": (lambda model: reader_solver(model, model, system="so"), ASKED),
    "chain": (chain_flow, {}),
    "items": (items_flow, {"rows": ["one cache", "the reader"]}),
}


@pytest.mark.parametrize("name", FLOWS)
def test_tokens_are_foretold(name: str, store: CostStore, model: LocalModel) -> None:
    """After one run, what the next computes and writes is known to a few tokens a turn."""
    make, inputs = FLOWS[name]
    flow = make(model)
    flow.costs = store
    result = flow.run(**inputs)
    flow.remember(result)
    forecast = forecast_of(flow, store, inputs)
    for agent, turns in result.report.agents.items():
        computed = sum(turn.prefilled_tokens + turn.recomputed_tokens for turn in turns)
        told = forecast.agents[agent]
        assert told.computed_tokens == pytest.approx(computed, abs=4 * len(turns))
        assert told.prompt_tokens == pytest.approx(
            sum(turn.prompt_tokens for turn in turns), abs=4 * len(turns)
        )
        assert told.generated_tokens == sum(turn.generated_tokens for turn in turns)
    for edge, told in zip(result.report.edges, forecast.edges, strict=True):
        if edge.mode != "text":
            assert told.bytes == pytest.approx(edge.bytes, rel=0.1)
    assert forecast.runs == 1 and 0 < forecast.seconds <= forecast.most_seconds


def test_a_loop_is_foretold_by_its_limit_until_runs_have_shown_better(
    store: CostStore, model: LocalModel
) -> None:
    """Three turns may be taken; two runs that took one each say so."""
    drafter = Agent("drafter", model, prompt="draft", max_turns=3, generate={"max_new_tokens": 4})
    critic = Agent("critic", model, prompt="short?", generate={"max_new_tokens": 2})
    flow = Workflow("loop", [drafter, critic]).connect(drafter, critic, share="context")
    flow.connect(critic, drafter, loop=True, when="false")
    before = forecast_of(flow, store, {})
    assert before.agents["drafter"].turns == 3 and before.runs == 0
    for _ in range(2):
        flow.remember(flow.run())
    after = forecast_of(flow, store, {})
    assert after.agents["drafter"].turns == 1 and after.runs == 2
    assert after.seconds < before.seconds == after.most_seconds


def test_nothing_is_foretold_of_what_is_not_known(tmp_path: Path, model: LocalModel) -> None:
    """Without all inputs, or where the model was not measured, there is no forecast."""
    flow = reader_solver(model, model)
    flow.costs = CostStore(tmp_path)
    assert flow.plan(ASKED).forecast is None
    flow.costs.keep_pace(model, PACE)
    assert flow.plan(document=DOCUMENT).forecast is None
    assert flow.plan(ASKED).forecast is not None


@pytest.mark.parametrize("longest", [48, 512])
def test_a_calibration_is_kept_and_says_whence_it_is(
    tmp_path: Path, model: LocalModel, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    """All is measured, in short contexts too; the plan shows when and where."""
    monkeypatch.setattr(calibrate, "LONG", longest)
    flow = reader_solver(model, model)
    flow.costs = CostStore(tmp_path)
    pace = flow.calibrate().costs.pace(model)  # type: ignore[union-attr]  # it was given above
    assert pace is not None
    assert all(taken > 0 for points in (pace.prefill, pace.decode) for _, taken in points)
    assert pace.reuse > 0 and pace.packet > 0
    data = flow.plan(ASKED).to_dict()
    assert data["predicted_seconds"] > 0 and data["edges"][0]["predicted_seconds"] >= 0
    (calibrated,) = data["calibrated"].values()
    assert calibrated["at"].startswith("20") and calibrated["dtype"] == "float32"


def test_a_bridge_is_measured_for_its_pair(
    tmp_path: Path, model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver's pace has the pair's seconds a token, and its edge costs them."""
    monkeypatch.setattr(calibrate, "LONG", 48)
    sharer = tiny_model(2)
    channel = ProjectedCacheChannel(FakeBridge(sharer, model))
    flow = reader_solver(sharer, model, channel)
    flow.costs = CostStore(tmp_path)
    pace = flow.calibrate().costs.pace(model)  # type: ignore[union-attr]  # it was given above
    assert pace is not None
    ((pair, each),) = pace.project.items()
    assert pair == pair_digest(sharer.identity, model.identity) and each > 0
    (edge,) = forecast_of(flow, flow.costs, ASKED).edges
    assert edge.seconds > 50 * each


def test_the_benchmark_sets_forecasts_beside_runs(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here for one workflow: its error is that of the seconds foretold."""
    case = predictions.Case(flow=reader_solver(model, model), inputs=ASKED)
    monkeypatch.setattr(predictions, "cases", lambda *given: [("one", case)])
    (row,), summary = predictions.measure(model, model, progress=lambda line: None)
    error = abs(row["predicted_s"] - row["measured_s"]) / row["measured_s"]
    assert summary["worst_relative_error"] == row["relative_error"] == pytest.approx(error)
    assert row["predicted_computed"] == pytest.approx(row["computed"], abs=8)


def test_a_skipped_agent_keeps_what_is_known_of_its_words() -> None:
    """A run that passes it by says nothing of how long it writes."""
    report = _turn(generated=8)
    lengths = Lengths().with_run({"a": [report]}).with_run({"a": []})
    assert lengths.agents["a"].turns == 0.5 and lengths.agents["a"].generated == 8


def _turn(generated: int) -> Any:
    from unspoken.agents.runtime.report import TurnReport

    empty = TurnReport(
        turn=1,
        prompt_tokens=1,
        prefilled_tokens=1,
        reused_tokens=0,
        recomputed_tokens=0,
        projected_tokens=0,
        generated_tokens=0,
        layer_tokens_computed=2,
        ttft_s=None,
        seconds=1.0,
    )
    return replace(empty, generated_tokens=generated)
