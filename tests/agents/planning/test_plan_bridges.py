"""Plans over bridges: what an edge asks, and what its bridge keeps."""

from dataclasses import replace
from typing import Any

import pytest
from fake_bridge import finder
from flows import Models, reader_solver

from unspoken.agents import Agent, EdgePlan, LocalModel, Workflow
from unspoken.agents.planning.planner import plan_workflow
from unspoken.agents.testing import FakeBridge
from unspoken.agents.testing.bridge import SHOWN
from unspoken.channels import ProjectedCacheChannel
from unspoken.channels.bridges.bounds import AuditBounds
from unspoken.channels.errors import BridgeError

CACHE, PROJECTED, TEXT = "same_model_cache", "projected_cache", "text"


def bridged(
    models: Models,
    channel: Any = "auto",
    *,
    bridge: dict[str, Any] | None = None,
    ends: tuple[str, str] = ("chatml", "other"),
    bridges: str = "stored",
    **edge: Any,
) -> EdgePlan:
    """The plan of a reader and a solver on two models, with or without a bridge in the store."""
    pair = models[ends[0]], models[ends[1]]
    flow = reader_solver(*pair, channel, **edge)
    spec = flow.spec.model_copy(update={"bridges": bridges})
    stored = [] if bridge is None else [FakeBridge(*pair, **bridge)]
    agents = {"reader": pair[0], "solver": pair[1]}
    given = {0: channel.bridge} if isinstance(channel, ProjectedCacheChannel) else {}
    plan = plan_workflow(spec, agents, find_bridge=finder(*stored), bridges=given)
    assert isinstance(plan.channels[0], ProjectedCacheChannel) == (
        plan.edges[0].mode in ("projected", "fused") and not plan.unfitted
    )
    return plan.edges[0]


def shown(**figures: Any) -> dict[str, Any]:
    """A fake bridge whose audit shows what a good one's does, but for these figures."""
    return {"bounds": replace(SHOWN, **figures)}


OLD = {"bounds": AuditBounds(contexts=0)}


@pytest.mark.parametrize("channel", ["auto", PROJECTED])
@pytest.mark.parametrize(
    ("bridge", "edge", "mode", "advice"),
    [
        (shown(message_kept=0.9), {}, "projected", ""),
        (shown(message_kept=0.91) | {"native_layers": 2}, {}, "projected", ""),
        (shown(message_kept=0.8999), {}, TEXT, "min_retention: 0.89 on this edge"),
        (shown(message_kept=0.29), {"min_retention": 0.29}, "projected", ""),
        (shown(message_kept=0.94), {"min_retention": 0.95}, TEXT, "0.94"),
        (shown(message_kept=-0.1), {}, TEXT, ""),
        (shown(message_kept=None), {}, TEXT, ""),
        (shown(sharer_adds=0.0), {}, TEXT, ""),
        (shown(sharer_adds=None), {}, TEXT, "--with-embeddings-bridge"),
        (shown(sharer_adds=None), {"min_retention": 0.0}, "projected", ""),
        (shown(task_difference=-0.03), {}, "projected", ""),
        (shown(task_difference=-0.041), {}, TEXT, "max_loss: 0.05 on this edge"),
        (shown(task_difference=-0.041), {"max_loss": 0.05}, "projected", ""),
        (shown(task_difference=-0.041), {"min_retention": 0.0}, TEXT, "max_loss: 0.05"),
        (shown(contexts=99), {}, TEXT, "unspoken bridge audit"),
        (shown(compared=False), {}, TEXT, "where that text lies"),
        (shown(compared=False), {"min_retention": 0.0, "max_loss": 1.0}, "projected", ""),
        (shown(contexts=110, task_difference=-0.033), {}, TEXT, "with more rows"),
        (shown(task_difference=None), {}, TEXT, "--qa FILE"),
        (OLD, {}, TEXT, "unspoken bridge audit"),
        ({"bounds": None}, {}, TEXT, "unspoken bridge audit"),
        ({"bounds": None}, {"min_retention": 0.0}, TEXT, "unspoken bridge audit"),
        (OLD, {"min_retention": 0.0, "max_loss": 1.0}, "projected", ""),
        (None, {}, TEXT, "unspoken bridge fit"),
    ],
)
def test_a_bridge_is_held_to_what_the_edge_asks(
    models: Models,
    channel: str,
    bridge: dict[str, Any] | None,
    edge: dict[str, Any],
    mode: str,
    advice: str,
) -> None:
    """Where the lower bounds show it, it is used; else the edge is text, and the plan says why."""
    plan = bridged(models, channel, bridge=bridge, **edge)
    assert plan.mode == mode and plan.channel == (PROJECTED if mode == "projected" else TEXT)
    assert advice in plan.advice and (bool(advice) or "on this edge" not in plan.advice)
    assert (plan.fallback is not None) == (channel == PROJECTED and mode == TEXT)
    used = bridge if bridge and mode == "projected" else {}
    bounds = used.get("bounds")
    assert plan.retention == (None if bounds is None else bounds.message_kept)
    assert plan.native_layers == used.get("native_layers", 0)
    assert (plan.bytes_per_token > 0) == (mode == "projected")


def test_the_plan_says_where_an_edge_asks_for_less_than_usual(models: Models) -> None:
    """Both figures, what was asked, and what is usual."""
    plan = bridged(models, bridge=shown(), min_retention=0.4, max_loss=0.2)
    for part in ("0.95", "0.4 asked, usually 0.9", "0.2 allowed, usually 0.03"):
        assert part in plan.reason
    assert "usually" not in bridged(models, bridge=shown()).reason
    assert "manner of answering" in bridged(models, bridge=shown(style=0.08)).reason
    assert "manner of answering" not in bridged(models, bridge=shown(style=0.04)).reason
    nothing = bridged(models, bridge=OLD, min_retention=0.0, max_loss=1.0)
    assert "asks nothing of its audit" in nothing.reason


@pytest.mark.parametrize(("adds", "mode"), [(0.01, "fused"), (0.0, TEXT), (None, TEXT)])
def test_fuse_mode_is_off_unless_its_sharer_is_shown_to_add_something(
    models: Models, adds: float | None, mode: str
) -> None:
    """Else it is experimental, and only an edge that asks for nothing has it."""
    plan = bridged(models, PROJECTED, bridge=shown(fuse_adds=adds), fuse=True)
    assert plan.mode == mode and ("experimental" in plan.reason) == (mode == TEXT)
    tried = bridged(models, PROJECTED, bridge=shown(fuse_adds=adds), fuse=True, min_retention=0.0)
    assert tried.mode == "fused" and ("experimental" in tried.reason) == (mode == TEXT)


def test_a_missing_bridge_s_command_names_both_models(models: Models) -> None:
    """It can be copied as it stands."""
    ends = models["chatml"].ref, models["other"].ref
    assert f"unspoken bridge fit {ends[0]} {ends[1]}" in bridged(models).advice


def test_a_missing_bridge_is_to_be_fitted_where_the_file_says_so(models: Models) -> None:
    """bridges: fit is no fallback, and no error."""
    for channel in ("auto", PROJECTED):
        plan = bridged(models, channel, bridges="fit", fallback="error")
        assert (plan.mode, plan.channel, plan.unfitted) == ("projected", PROJECTED, True)
        assert plan.fallback is None
    assert not bridged(models, bridges="fit", bridge={}).unfitted


def test_equal_weights_need_no_bridge(models: Models) -> None:
    """Auto continues the state; a bridge by name is text, unless it leads a model to itself."""
    ends = ("chatml", "chatml")
    assert bridged(models, ends=ends, bridge={}).mode == "continuation"
    named = bridged(models, PROJECTED, ends=ends, bridges="fit")
    assert named.mode == TEXT and (named.fallback is not None)
    assert "same_model_cache" in named.advice
    assert bridged(models, PROJECTED, ends=ends, bridge={}).mode == "projected"


def test_the_same_model_channel_by_name_takes_no_bridge(models: Models) -> None:
    """What was asked for by name is not replaced by something else than text."""
    assert bridged(models, CACHE, bridge={}).mode == TEXT


def test_a_bridge_given_in_python_is_held_to_the_edge_too(models: Models) -> None:
    """It needs no store; unaudited it is used only where the edge asks for nothing."""
    pair = models["chatml"], models["other"]

    def plan(message_kept: float | None, **edge: Any) -> EdgePlan:
        bounds = None if message_kept is None else replace(SHOWN, message_kept=message_kept)
        return bridged(models, ProjectedCacheChannel(FakeBridge(*pair, bounds)), **edge)

    assert plan(0.9).mode == "projected"
    assert plan(0.7).mode == TEXT and plan(0.7, min_retention=0.5).mode == "projected"
    assert plan(None).mode == TEXT
    unaudited = plan(None, min_retention=0.0, max_loss=1.0)
    assert (unaudited.mode, unaudited.retention) == ("projected", None)


def test_a_bridge_serves_no_message_that_the_prompt_changes(models: Models) -> None:
    """Filtered words are other words."""
    pair = models["chatml"], models["other"]
    reader = Agent("r", pair[0], prompt="words of r", generate=None)
    solver = Agent("s", pair[1], prompt="{{ r.text | upper }}")
    flow = Workflow("w", [reader, solver]).connect(reader, solver, PROJECTED)
    plan = plan_workflow(
        flow.spec, {"r": pair[0], "s": pair[1]}, find_bridge=finder(FakeBridge(*pair))
    )
    (edge,) = plan.edges
    assert edge.mode == TEXT and edge.fallback is not None


def test_a_broken_bridge_is_told(models: Models) -> None:
    """What the store says of it stands in the plan."""

    def broken(sharer: LocalModel, receiver: LocalModel) -> None:
        raise BridgeError("bridge.json is not JSON", fix="fit it again")

    pair = models["chatml"], models["other"]
    flow = reader_solver(*pair)
    (edge,) = plan_workflow(
        flow.spec, {"reader": pair[0], "solver": pair[1]}, find_bridge=broken
    ).edges
    assert edge.mode == TEXT
    assert edge.advice.endswith("fit it again")


def test_every_edge_into_a_receiver_has_its_own_bridge(models: Models) -> None:
    """Two sharers of two models: each edge carries the bridge that leads from its own."""
    receiver, sharers = models["chatml"], (models["other"], models["third"])
    readers = [
        Agent(f"r{n}", name, prompt="{{ inputs.document }}", generate=None)
        for n, name in enumerate(sharers)
    ]
    flow = Workflow("w", [*readers, Agent("s", receiver, prompt="so?")])
    flow.connect("r0", "s").connect("r1", "s")
    bridges = [FakeBridge(name, receiver) for name in sharers]
    agents = {"r0": sharers[0], "r1": sharers[1], "s": receiver}
    plan = plan_workflow(flow.spec, agents, find_bridge=finder(*bridges))
    assert [plan.channels[n].bridge for n in (0, 1)] == bridges  # type: ignore[attr-defined]
