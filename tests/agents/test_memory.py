"""Runs in little memory: the same answers, within the budget, or an error before anything runs."""

import gc
import os
from pathlib import Path
from typing import Any

import pytest
from flows import sound
from runs import CACHE, FEW

from unspoken.agents import Agent, LocalModel, RunResult, Session, Workflow
from unspoken.agents.testing import ScriptedModel, tiny_model
from unspoken.channels import AgentError, RunError, WorkflowError

DOCUMENT = "the key of the cache is in the document that the reader was for\n" * 12
READERS = 14


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


def panel(model: LocalModel, **settings: Any) -> Workflow:
    """Readers of a document each, whose states wait for one another, then a solver each."""
    readers = [
        Agent(f"r{n}", model, prompt=f"{n}: {{{{ inputs.document }}}}", generate=None)
        for n in range(READERS)
    ]
    solvers = [Agent(f"s{n}", model, prompt=f"what of {n}?", generate=FEW) for n in range(READERS)]
    flow = Workflow("panel", [*readers, *solvers], **settings)
    for n in range(READERS):
        flow.connect(f"r{n}", f"s{n}", CACHE)
        if n:  # each reads on once the one before has answered, so the states have to wait
            flow.connect(f"s{n - 1}", f"s{n}", "text")
    return flow


@pytest.fixture(scope="module")
def plain(model: LocalModel) -> RunResult:
    return panel(model).run(document=DOCUMENT)


def test_a_budget_four_times_too_small_gives_the_same_answers(
    model: LocalModel, plain: RunResult
) -> None:
    """States wait on disk, and every edge is the continuation that it is in all the memory."""
    peak = plain.report.peak_state_bytes
    result = panel(model, memory=peak // 4).run(document=DOCUMENT)
    assert result.outputs == plain.outputs
    report = sound(result.report)
    assert [edge.mode for edge in report.edges if edge.channel != "text"] == (
        ["continuation"] * READERS
    )
    assert report.spilled_state_bytes > peak // 2 > 0 == plain.report.spilled_state_bytes
    assert report.peak_state_bytes <= peak // 4 * 1.1


def test_nothing_is_left_on_disk(
    model: LocalModel, plain: RunResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while states wait there nor afterwards is there a file that others can see."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    panel(model, memory=plain.report.peak_state_bytes // 4).run(document=DOCUMENT)
    gc.collect()
    assert os.listdir(tmp_path) == []
    if opened:
        assert len(os.listdir("/proc/self/fd")) <= opened


def test_a_session_has_its_own_budget(model: LocalModel, plain: RunResult) -> None:
    """Its runs spill as well, and the workflow's own memory does not count."""
    quarter = plain.report.peak_state_bytes // 4
    with Session(memory=quarter) as session:
        results = [panel(model, memory=1).run(document=DOCUMENT, session=session) for _ in range(2)]
        statistics = session.statistics()
    assert all(result.outputs == plain.outputs for result in results)
    assert statistics.spilled_bytes > 0 and statistics.tickets == statistics.bytes_leased == 0
    assert statistics.bytes_held <= quarter
    assert statistics.budget_bytes == {"cpu": quarter}


def test_a_turn_that_never_fits_is_an_error_of_the_plan(model: LocalModel) -> None:
    """With the figures, the agent and the way out, before anything runs."""
    flow = panel(model, memory="100kB")
    with pytest.raises(WorkflowError) as caught:
        flow.run(document=DOCUMENT)
    first = caught.value.problems[0]
    assert first.where == "agents.r0"
    assert first.message.startswith("a turn of r0 takes ") and "kB of state" in first.message
    assert first.expected == "at most 100.0 kB, the memory for states"
    assert [problem.where for problem in caught.value.problems] == [
        f"agents.r{n}" for n in range(READERS)
    ]  # a solver reads its document where it lies
    with pytest.raises(WorkflowError, match="a turn of r0 takes"):
        flow.plan(document=DOCUMENT)
    assert flow.plan().edges  # without inputs nothing is known


def test_what_the_plan_cannot_know_fails_in_its_turn(model: LocalModel) -> None:
    """A prompt that reads what others write has an unknown length."""
    writer = Agent("writer", model, prompt="{{ inputs.document }}", generate={"max_new_tokens": 2})
    reader = Agent("reader", model, prompt="{{ writer.text * 900 }}", generate=FEW)
    flow = Workflow("w", [writer, reader], memory="200kB").connect(writer, reader, "text")
    with pytest.raises(AgentError, match=r"agent 'reader' failed: .* needs .* of state"):
        flow.run(document="who?")


def test_a_broken_run_gives_everything_back(model: LocalModel) -> None:
    """An error in the middle leaves no ticket and no lease in the session."""
    flow = panel(model)

    class Stop(Exception):
        pass

    def answer(agent: str, turn: int, prompt: str) -> str:
        if agent == "s3":
            raise Stop
        return "yes"

    script = ScriptedModel(answer)
    with Session() as session:
        with pytest.raises(RunError):
            Workflow.from_spec(flow.spec, models=dict.fromkeys(flow.spec.models, script)).run(
                document=DOCUMENT, session=session
            )
        statistics = session.statistics()
    assert statistics.tickets == statistics.bytes_leased == 0
