"""States of sliding layers that are trimmed on an edge, and those that must not be."""

import pytest
from architectures import make

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.engines.base import KEEP, Keep, StateRef
from unspoken.agents.engines.local import LocalEngine
from unspoken.agents.runtime.report import RunReport

DOCUMENT = "the key of the cache is in the document that the reader was for " * 3


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return make("gemma3")


@pytest.fixture
def trimmed(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """By holder, whether what was kept for it was trimmed."""
    asked: dict[str, bool] = {}
    keep = LocalEngine.keep

    async def spied(
        self: LocalEngine, state: StateRef, ids: tuple[int, ...], how: Keep = KEEP
    ) -> StateRef:
        asked[how.holder] = how.trimmed
        return await keep(self, state, ids, how)

    monkeypatch.setattr(LocalEngine, "keep", spied)
    return asked


def chain(model: LocalModel, channel: str = "auto") -> Workflow:
    """A reader, and two who go on from it."""
    reader = Agent("reader", model, prompt=DOCUMENT, generate=None)
    first = Agent("first", model, prompt="who was it?", generate={"max_new_tokens": 8})
    second = Agent("second", model, prompt="and its value?", generate={"max_new_tokens": 8})
    flow = Workflow("chain", [reader, first, second])
    return flow.connect(reader, first, channel).connect(first, second, channel, share="context")


def modes(report: RunReport) -> list[str]:
    return [edge.mode for edge in report.edges]


def test_a_chain_of_continuations_keeps_what_later_tokens_see(
    model: LocalModel, trimmed: dict[str, bool]
) -> None:
    """Every state is trimmed, and what is written is what text would give."""
    run = chain(model).run()
    assert modes(run.report) == ["continuation", "continuation"]
    assert trimmed["reader -> first"] and trimmed["first -> second"]
    assert run.outputs == chain(model, "text").run().outputs


@pytest.mark.parametrize("share", ["output", "prompt", "context"])
def test_what_is_spliced_further_on_is_kept_whole(
    model: LocalModel, trimmed: dict[str, bool], share: str
) -> None:
    """A reader's own state begins with the rows it took over, and a splice wants them."""
    other = Agent("other", model, prompt="the other one first", generate=None)
    last = Agent("last", model, prompt="say it", generate={"max_new_tokens": 4})
    reader = Agent("reader", model, prompt=DOCUMENT, generate=None)
    first = Agent("first", model, prompt="who was it?", generate={"max_new_tokens": 8})
    flow = Workflow("splice", [reader, first, other, last]).connect(reader, first)
    run = flow.connect(other, last).connect(first, last, share=share).run()
    assert modes(run.report) == ["continuation", "continuation", "splice"]
    assert all(edge.fallback is None for edge in run.report.edges)
    assert not trimmed["reader -> first"] and not trimmed["first -> last"]
    assert trimmed["other -> last"]


def test_a_loop_keeps_whole_states(model: LocalModel, trimmed: dict[str, bool]) -> None:
    """The plan is of first turns; a second message is spliced, and finds all of its rows."""
    writes = {"max_new_tokens": 4}
    drafter = Agent("drafter", model, prompt="the key of it", generate=writes, max_turns=2)
    critic = Agent("critic", model, prompt="what of it?", generate=writes, max_turns=2)
    flow = Workflow("loop", [drafter, critic])
    flow.connect(drafter, critic, "same_model_cache", share="context", fallback="error")
    flow.connect(critic, drafter, "same_model_cache", loop=True, fallback="error")
    run = flow.run()
    assert modes(run.report)[0] == "continuation" and "splice" in modes(run.report)
    assert not any(trimmed.values())
