"""Random graphs whose agents fail, wait or are cancelled, against one agent after the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.agents import Agent, RunResult, Workflow
from unspoken.agents.authoring import States
from unspoken.agents.bench.engine.overhead import WORD, WordModel
from unspoken.channels import AgentError

FAIL, SKIP, DEFAULT = "fail", "skip", "default"


@dataclass(frozen=True)
class Case:
    """Agents 0 to n - 1, edges from lower to higher ones.

    Attributes:
        failures: By agent, how many of its tries fail.
        tries: By agent, how often it is tried.
        on_error: By agent, what becomes of a turn that failed in each.
        edges: As (sharer, receiver).
        order: How many moments each agent waits before it ends.
    """

    failures: tuple[int, ...]
    tries: tuple[int, ...]
    on_error: tuple[str, ...]
    edges: frozenset[tuple[int, int]]
    order: tuple[int, ...]

    def expected(self) -> dict[str, str] | None:
        """What each agent wrote, one after the other; None where the run fails."""
        wrote: dict[int, str] = {}
        for agent, failures in enumerate(self.failures):
            sharers = [sharer for sharer, receiver in self.edges if receiver == agent]
            if sharers and not wrote.keys() & set(sharers):
                continue
            if failures < self.tries[agent]:
                wrote[agent] = WORD
            elif self.on_error[agent] == FAIL:
                return None
            elif self.on_error[agent] == DEFAULT:
                wrote[agent] = "nothing"
        return {f"n{agent}": text for agent, text in wrote.items()}


class _Fails(WordModel):
    """A model whose turns wait, and fail as a case says."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._left, self._order = list(case.failures), case.order

    def make_engine(self, states: States) -> Any:
        engine: Any = super().make_engine(states)
        compute = engine.turn

        async def turn(request: Any, on_event: Any) -> Any:
            agent = int(request.owner[1:])
            for _ in range(self._order[agent]):
                await anyio.lowlevel.checkpoint()
            if self._left[agent]:
                self._left[agent] -= 1
                raise ConnectionError("gone")
            return await compute(request, on_event)

        engine.turn = turn
        return engine


def flow_of(case: Case) -> Workflow:
    model = _Fails(case)
    agents = [
        Agent(
            f"n{number}",
            model,
            prompt="go",
            on_error=on_error,  # type: ignore[arg-type]
            default="nothing" if on_error == DEFAULT else None,
            retry={"attempts": tries, "wait": 0},
        )
        for number, (on_error, tries) in enumerate(zip(case.on_error, case.tries, strict=True))
    ]
    flow = Workflow("w", agents)
    for sharer, receiver in sorted(case.edges):
        flow.connect(f"n{sharer}", f"n{receiver}", "text")
    return flow


@st.composite
def cases(draw: st.DrawFn) -> Case:
    size = draw(st.integers(1, 6))

    def each(values: st.SearchStrategy[Any]) -> tuple[Any, ...]:
        return tuple(draw(values) for _ in range(size))

    pairs = [(a, b) for b in range(size) for a in range(b)]
    return Case(
        failures=each(st.integers(0, 2)),
        tries=each(st.integers(1, 2)),
        on_error=each(st.sampled_from([FAIL, SKIP, SKIP, DEFAULT])),
        edges=draw(st.frozensets(st.sampled_from(pairs))) if pairs else frozenset(),
        order=each(st.integers(0, 3)),
    )


def texts(result: RunResult) -> Mapping[str, str]:
    return {name: agent.text for name, agent in result.agents.items()}


@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_failures_end_as_the_sequential_model_says(case: Case) -> None:
    """Whoever ends first: the same words, the same skips, and the same failures in the report."""
    expected, flow = case.expected(), flow_of(case)
    if expected is None:
        with pytest.raises(AgentError, match="gone") as caught:
            flow.run()
        assert case.on_error[int(caught.value.agent[1:])] == FAIL
        return
    result = flow.run()
    assert texts(result) == expected
    failed = {turn.agent: turn.default for turn in result.report.failed_turns}
    for name, default in failed.items():
        assert default == (expected.get(name) == "nothing")
        assert default == (case.on_error[int(name[1:])] == DEFAULT)


@settings(max_examples=20, deadline=None)
@given(case=cases(), moments=st.integers(0, 8))
def test_a_cancel_leaves_the_next_run_as_it_is(case: Case, moments: int) -> None:
    """A run that is cancelled at any moment leaves nothing that another one could see."""
    healthy = Case(
        failures=(0,) * len(case.failures),
        tries=case.tries,
        on_error=case.on_error,
        edges=case.edges,
        order=case.order,
    )
    flow = flow_of(healthy)

    async def cancelled() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flow.arun)
            for _ in range(moments):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    anyio.run(cancelled)
    assert texts(flow.run()) == healthy.expected()
