"""The benchmark of one conversation runs to its end on a tiny model."""

import sys

import pytest

from unspoken.agents.bench.engine import chain
from unspoken.agents.bench.engine.team import STEPS, Relay
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import Context
from unspoken.agents.testing import tiny_model
from unspoken.channels.errors import ModelSupportError


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


def test_each_agent_continues_the_whole_conversation(model: LocalModel) -> None:
    """Contexts are those that the baseline composes, and all earlier tokens are taken over."""
    relay = Relay(model=model, document="the key of the value", steps=STEPS, tokens=4)
    result = relay.run(relay.flow())
    assert {(edge.mode, edge.exact) for edge in result.report.edges} == {("continuation", True)}
    ask, conversation = model.context_builder.ask(), Context()
    for number, agent in enumerate(result.report.agents):
        asked = relay.asked(conversation, number)
        (turn,) = result.report.agents[agent]
        assert turn.prompt_tokens == len(asked.ids) + len(ask)
        assert turn.generated_tokens == 4
        assert turn.reused_tokens >= len(conversation.ids)
        written = (*range(5, 9),)  # as many ids, whichever they are
        conversation = relay.answered(asked, written)


def test_chain_has_its_figures(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three ways write the same, and the main ratio is that to the faster baseline."""
    pytest.importorskip("langgraph", reason="the extra `peers` is not installed")
    for name, value in {"TOKENS": 24, "NEW": 4, "ROUNDS": 1}.items():
        monkeypatch.setattr(chain, name, value)
    rows, summary = chain.measure(model, progress=lambda line: None)
    assert {row["way"] for row in rows} == {chain.OURS, chain.PLAIN, chain.CACHED}
    assert all(row["answers_equal"] == len(STEPS) for row in rows)
    assert summary["answers_equal"] is True
    both = summary["speedup_vs_langgraph_plain"], summary["speedup_vs_langgraph_cached"]
    assert summary["speedup_vs_langgraph"] == min(both)


def test_without_langgraph_the_extra_is_named(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is computed before that is said."""
    monkeypatch.setitem(sys.modules, "langgraph", None)
    monkeypatch.setitem(sys.modules, "langgraph.graph", None)
    with pytest.raises(ModelSupportError, match="langgraph") as caught:
        chain.measure(model, progress=lambda line: None)
    assert "unspoken[peers]" in caught.value.fix
