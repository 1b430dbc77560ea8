"""Workflows over bridges: planned, carried, fitted where asked, refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_bridge import finder
from flows import DOCUMENT, QUESTION, Models, reader_solver, sound

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.testing import FakeBridge
from unspoken.agents.testing.bridge import SHOWN
from unspoken.channels import ProjectedCacheChannel, TextChannel
from unspoken.channels.bridges.bounds import AuditBounds
from unspoken.channels.errors import AgentError, IdentityMismatch, InputError, WorkflowError

pytestmark = pytest.mark.usefixtures("cache")

GIVEN = {"document": DOCUMENT, "question": QUESTION}
NOTHING = {"min_retention": 0.0, "max_loss": 1.0}
PAIRS = [("one", "two"), ("two", "one"), ("one", "tune"), ("slides", "one"), ("one", "slides")]


def projected(models: Models, theirs: str = "one", ours: str = "two", **edge: Any) -> Workflow:
    bridge = FakeBridge(models[theirs], models[ours], **edge.pop("bridge", {}))
    channel = ProjectedCacheChannel(bridge)
    return reader_solver(models[theirs], models[ours], channel, **edge)


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_a_run_over_a_bridge_writes_what_text_writes(
    models: Models, theirs: str, ours: str
) -> None:
    """A bridge given in Python is planned and taken, from reader to solver."""
    flow = projected(models, theirs, ours)
    (plan,) = flow.plan().edges
    assert (plan.channel, plan.mode, plan.retention) == ("projected_cache", "projected", 0.95)
    result = flow.run(**GIVEN)
    words = reader_solver(models[theirs], models[ours], "text").run(**GIVEN)
    assert result.outputs == words.outputs
    (edge,) = sound(result.report).edges
    assert (edge.planned, edge.channel) == ("projected_cache", "projected_cache")
    (turn,) = result.report.agents["solver"]
    assert turn.projected_tokens == edge.projected > 50 and not result.report.fallbacks
    assert result.to_dict()["edges"][0]["projected"] == edge.projected


def test_what_an_agent_wrote_is_projected_too(models: Models) -> None:
    """Sampled words have character ends, and a quote inside a prompt has its place."""
    writer = Agent(
        "writer", models["one"], prompt="{{ inputs.document }}", generate={"max_new_tokens": 24}
    )
    solver = Agent(
        "solver",
        models["two"],
        prompt="He said: {{ writer.text }}\nSo?",
        generate={"max_new_tokens": 6},
    )
    bridge = FakeBridge(models["one"], models["two"])
    results = []
    for channel in (ProjectedCacheChannel(bridge, sink=0), TextChannel()):
        flow = Workflow("w", [writer, solver]).connect(writer, solver, channel)
        results.append(flow.run(document=DOCUMENT))
    assert results[0].outputs == results[1].outputs
    (edge,) = sound(results[0].report).edges
    assert edge.channel == "projected_cache" and edge.projected == edge.tokens > 0
    ((_, ours),) = bridge.asked
    assert models["two"].text.decode(ours) in results[0]["writer"].text


def test_a_whole_context_is_projected_turn_by_turn(models: Models) -> None:
    """share: context between tokenizers: every turn's words, each at its place."""
    writer = Agent(
        "writer", models["one"], prompt="{{ inputs.document }}", generate={"max_new_tokens": 8}
    )
    solver = Agent("solver", models["two"], prompt="So?", generate={"max_new_tokens": 6})
    bridge = FakeBridge(models["one"], models["two"])
    results = []
    for channel in (ProjectedCacheChannel(bridge, share="context"), TextChannel(share="context")):
        flow = Workflow("w", [writer, solver]).connect(writer, solver, channel)
        results.append(flow.run(document=DOCUMENT))
    assert results[0].outputs == results[1].outputs
    assert len(bridge.asked) == 2
    sound(results[0].report)


def test_a_bridge_is_found_by_its_models(models: Models) -> None:
    """By name and under auto, a workflow looks for its bridges itself."""
    for channel in ("auto", "projected_cache"):
        flow = reader_solver(models["one"], models["two"], channel)
        flow._preparation.bridge_cache.find = finder(FakeBridge(models["one"], models["two"]))  # type: ignore[method-assign]
        result = flow.run(**GIVEN)
        assert [edge.channel for edge in sound(result.report).edges] == ["projected_cache"]


def test_a_message_far_longer_than_the_audited_goes_by_text(models: Models) -> None:
    """Beyond twice the longest measured; where the edge asks nothing of an audit it is carried."""
    for longest, asked, mode in (
        (2, {}, "text"),
        (2, NOTHING, "projected"),
        (900, {}, "projected"),
    ):
        bridge = FakeBridge(models["one"], models["two"], replace(SHOWN, longest=longest))
        flow = reader_solver(models["one"], models["two"], "projected_cache", **asked)
        flow._preparation.bridge_cache.find = finder(bridge)  # type: ignore[method-assign]
        (edge,) = flow.run(**GIVEN).report.edges
        assert edge.mode == mode and (edge.fallback is None) == (mode == "projected")


def test_a_bridge_that_is_missing_is_fitted_once(models: Models, monkeypatch: Any) -> None:
    """bridges: fit plans a fit, fits on the first run, and keeps the bridge for the next."""
    fits = []

    def fit(sharer: LocalModel, receiver: LocalModel, progress: Any) -> FakeBridge:
        fits.append((sharer, receiver))
        progress("fit", 1.0)
        return FakeBridge(sharer, receiver)

    monkeypatch.setattr("unspoken.agents.bridge_cache._stored", lambda *given: None)
    monkeypatch.setattr("unspoken.agents.bridge_cache._fit", fit)
    reader = Agent("reader", models["one"], prompt="{{ inputs.document }}", generate=None)
    solver = Agent("solver", models["two"], prompt="So?", generate={"max_new_tokens": 4})
    flow = Workflow("w", [reader, solver], bridges="fit").connect(reader, solver, fallback="error")
    (plan,) = flow.plan().edges
    assert (plan.channel, plan.mode, plan.unfitted) == ("projected_cache", "projected", True)
    assert not fits
    seen: list[str] = []
    flow.fit_bridges(lambda edge, stage, part: seen.append(f"{edge}: {stage}"))
    for _ in range(2):
        (edge,) = flow.run(document=DOCUMENT).report.edges
        assert edge.channel == "projected_cache"
    assert len(fits) == 1 and seen == ["reader -> solver: fit"]
    assert not flow.plan().edges[0].unfitted


def test_a_fit_that_keeps_too_little_goes_by_text(models: Models, monkeypatch: Any) -> None:
    """A fitted bridge is held to the edge's retention like any other."""
    monkeypatch.setattr("unspoken.agents.bridge_cache._stored", lambda *given: None)
    monkeypatch.setattr(
        "unspoken.agents.bridge_cache._fit",
        lambda sharer, receiver, progress: FakeBridge(
            sharer, receiver, AuditBounds(message_kept=0.3)
        ),
    )
    reader = Agent("reader", models["one"], prompt="{{ inputs.document }}", generate=None)
    solver = Agent("solver", models["two"], prompt="So?", generate={"max_new_tokens": 4})
    flow = Workflow("w", [reader, solver], bridges="fit")
    flow.connect(reader, solver, "projected_cache")
    report = flow.run(document=DOCUMENT).report
    assert report.edges[0].channel == "text" and "0.30" in report.fallbacks[0][1]


def test_a_loop_between_models_is_projected_both_ways(models: Models) -> None:
    """A conversation of two models, each with its own bridge, writes what text writes."""
    one, two = models["one"], models["two"]
    settings: dict[str, Any] = {"generate": {"max_new_tokens": 6}, "max_turns": 3}
    draft = Agent("draft", one, prompt="{{ inputs.document }}", **settings)
    critic = Agent("critic", two, prompt="what of it?", **settings)
    texts = []
    for name in ("projected_cache", "text"):
        flow = Workflow("loop", [draft, critic])
        flow._preparation.bridge_cache.find = finder(FakeBridge(one, two), FakeBridge(two, one))  # type: ignore[method-assign]
        flow.connect(draft, critic, name).connect(critic, draft, name, loop=True)
        result = flow.run(document=DOCUMENT)
        assert {edge.channel for edge in sound(result.report).edges} == {name}
        texts.append([agent.turns for agent in result.agents.values()])
    assert texts[0] == texts[1]


def test_a_bridge_of_other_models_is_refused_at_connect(models: Models) -> None:
    """With fallback: error the ends are checked as soon as both are known."""
    bridge = FakeBridge(models["two"], models["one"])
    with pytest.raises(IdentityMismatch, match="a bridge of other models"):
        reader_solver(models["one"], models["two"], ProjectedCacheChannel(bridge), fallback="error")
    flow = reader_solver(models["one"], models["two"], ProjectedCacheChannel(bridge))
    (plan,) = flow.plan().edges
    assert plan.fallback is not None and "a bridge of other models" in plan.fallback.cause


def test_a_bridge_object_cannot_be_written_to_a_file(models: Models, tmp_path: Path) -> None:
    """By name the new keys round-trip; an object has no name to write."""
    with pytest.raises(InputError, match="given as an object"):
        projected(models).to_yaml()
    flow = reader_solver(models["one"], models["two"], "projected_cache", min_retention=0.5)
    flow.spec = flow.spec.model_copy(update={"bridges": "fit"})
    path = tmp_path / "flow.yaml"
    path.write_text(flow.to_yaml(), encoding="utf-8")
    assert "min_retention: 0.5" in flow.to_yaml() and "bridges: fit" in flow.to_yaml()
    assert Workflow.from_yaml(path).spec == flow.spec


def test_a_bridge_that_fails_in_the_run_names_its_edge(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A projection of the wrong positions is refused, and blamed on the edge."""
    project = FakeBridge.project

    def short(self: FakeBridge, state: Any, rows: Any, context: Any, at: int, receiver: Any) -> Any:
        return project(self, state, rows[:-1], context, at, receiver)

    monkeypatch.setattr(FakeBridge, "project", short)
    with pytest.raises(AgentError, match="the bridge made a state") as caught:
        projected(models, fallback="error").run(**GIVEN)
    assert caught.value.edge == "reader -> solver"
    (edge,) = projected(models).run(**GIVEN).report.edges
    assert edge.fallback is not None and "the bridge made a state" in edge.fallback.cause


def test_a_projected_edge_without_bridge_must_not_fall_back(models: Models) -> None:
    """fallback: error names the missing bridge and the command that makes one."""
    flow = reader_solver(models["one"], models["two"], "projected_cache", fallback="error")
    with pytest.raises(WorkflowError, match="no bridge from"):
        flow.plan()
