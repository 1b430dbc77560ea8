"""A budget of milliseconds: it buys a spliced message's first tokens, at the receiver's pace."""

from typing import Any

import pytest
import torch
from architectures import make
from messages import WORDS, message_of, receive, report

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.spec.repair import SINK
from unspoken.agents.spec.spec import EdgeSpec
from unspoken.channels import SameModelCacheChannel, pace
from unspoken.channels.errors import InputError, WorkflowError


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> LocalModel:
    """A model that computes a token a millisecond."""
    model = make("llama")
    key = model.identity, model.dtype, model.device
    monkeypatch.setitem(pace._KNOWN, key, 1000.0)
    return model


def flow_of(model: LocalModel, **edge: Any) -> Workflow:
    reader = Agent("reader", model, prompt=WORDS, generate=None, system="one of the keys")
    solver = Agent("solver", model, prompt="who?", generate={"max_new_tokens": 4})
    return Workflow("budget", [reader, solver]).connect(reader, solver, **edge)


def test_a_budget_repairs_the_first_tokens_that_it_pays_for(model: LocalModel) -> None:
    """Seven milliseconds, seven tokens."""
    message = message_of(model, WORDS, system="one of the keys")
    _, bought = receive(model, message, channel=SameModelCacheChannel(budget=7))
    _, counted = receive(model, message, channel=SameModelCacheChannel(sink=7))
    assert bought.missing == counted.missing and report(bought).repaired == 7


def test_no_budget_at_all_repairs_nothing(model: LocalModel) -> None:
    """Zero milliseconds need no pace."""
    pace._KNOWN.clear()
    message = message_of(model, WORDS, system="one of the keys")
    _, parts = receive(model, message, channel=SameModelCacheChannel(budget=0))
    assert report(parts).repaired == 0 and pace._KNOWN == {}


def test_a_budget_for_the_whole_message_is_exact(model: LocalModel) -> None:
    """The logits are those of the receiver's own prefill."""
    message = message_of(model, WORDS, system="one of the keys")
    ids, parts = receive(model, message, channel=SameModelCacheChannel(budget=10**6))
    assert report(parts).exact
    new = model.tensor([ids[position] for position in parts.missing])
    logits = model.prefill(new, parts.states, model.tensor(parts.missing)).logits
    with torch.no_grad():
        full = model.hf(model.tensor(ids)[None]).logits[0, -1]
    torch.testing.assert_close(logits, full, atol=1e-4, rtol=1e-4)


def test_the_pace_is_measured_once_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens over the seconds of the fastest trial; a second question costs nothing."""
    model, seconds = make("llama"), iter((0.5, 0.2, 0.4))
    monkeypatch.setattr(pace, "_KNOWN", {})
    monkeypatch.setattr(pace, "clock", lambda run, device: next(seconds))
    assert pace.tokens_per_second(model) == pytest.approx(64 / 0.2)
    assert pace.affordable_tokens(model, 10) == 3


def test_plan_and_report_say_what_a_budget_buys(model: LocalModel) -> None:
    """The number of tokens as data, and as many of them in the run."""
    flow = flow_of(model, repair={"budget": 9})
    (edge,) = flow.plan().edges
    assert (edge.mode, edge.repaired) == ("splice", 9) and "9 ms" in edge.reason
    (carried,) = flow.run().report.edges
    assert carried.repaired == 9


def test_a_budget_comes_back_from_a_file(model: LocalModel) -> None:
    """A channel object with a budget stands for the edge's key."""
    flow = flow_of(model, channel=SameModelCacheChannel(share="prompt", budget=12.5))
    (edge,) = flow.spec.edges
    assert edge.repair is not None and edge.repair.budget == 12.5
    assert "repair:\n      budget: 12.5\n" in flow.to_yaml()


@pytest.mark.parametrize("repair", [{"sink": 8}, {"deviation": 0.1}])
def test_a_budget_beside_another_repair_is_refused(
    model: LocalModel, repair: dict[str, float]
) -> None:
    """A budget chooses the tokens itself; in a workflow and in Python."""
    with pytest.raises(WorkflowError, match=f"a budget beside {next(iter(repair))}"):
        flow_of(model, repair={"budget": 5, **repair})
    with pytest.raises(InputError, match=f"a budget stands beside {next(iter(repair))}"):
        SameModelCacheChannel(budget=5, **repair)  # type: ignore[arg-type]


def test_a_budget_is_no_negative_time(model: LocalModel) -> None:
    """Nor anything that is no number."""
    with pytest.raises(InputError, match="budget is -1"):
        SameModelCacheChannel(budget=-1)
    with pytest.raises(WorkflowError, match="0 or more"):
        flow_of(model, repair={"budget": -1})


def test_a_bridge_takes_no_budget(model: LocalModel) -> None:
    """Of what a bridge makes, `sink` says how much the receiver computes."""
    with pytest.raises(WorkflowError, match="channel projected_cache"):
        flow_of(model, channel="projected_cache", repair={"budget": 5})


def test_a_file_and_a_channel_repair_as_much_where_nothing_is_said() -> None:
    """One default for both."""
    default = EdgeSpec.model_validate({"from": "a", "to": "b"}).repair
    assert default is not None and default.sink == SINK == SameModelCacheChannel().sink
