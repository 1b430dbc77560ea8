"""The plan: which channel each edge gets and why, held against what runs then do."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from chat_templates import TEMPLATES
from fake_bridge import FakeBridge, finder
from flows import DOCUMENT, QUESTION, own_cache, reader_solver, sibling, tiny_model
from tiny import tiny_tokenizer

from unspoken.agents import Agent, EdgePlan, LocalModel, Plan, Workflow
from unspoken.agents.planning.outline import outline
from unspoken.agents.planning.planner import plan_workflow
from unspoken.channels import ProjectedCacheChannel, SameModelCacheChannel, TextChannel
from unspoken.channels.errors import BridgeError, ModelSupportError, WorkflowError

CACHE, TEXT = "same_model_cache", "text"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LocalModel]]:
    """A model by template; `other` differs from chatml in one weight, `third` in all."""
    folder = tmp_path_factory.mktemp("models")
    with own_cache(folder / "cache"):
        chatml = tiny_model(folder / "chatml")
        made = {
            name: tiny_model(folder / name, tokenizer=tiny_tokenizer(chat_template=source))
            for name, source in (TEMPLATES | {"plain": None}).items()
        }
        others = {
            "other": sibling(chatml, folder / "other"),
            "third": tiny_model(folder / "third", 3),
        }
        yield {"chatml": chatml, **others, **made}


def agent(name: str, prompt: str = "", **settings: Any) -> Agent:
    settings.setdefault("generate", {"max_new_tokens": 4})
    return Agent(name, "model", prompt=prompt or f"words of {name}", **settings)


def reads(name: str, prompt: str = "", **settings: Any) -> Agent:
    return agent(name, prompt, generate=None, **settings)


def flow_of(
    model: LocalModel, agents: list[Agent], *edges: tuple[str, str, dict[str, Any]]
) -> Workflow:
    """A workflow on one model; an edge is (sharer, receiver, options)."""
    flow = Workflow("w", [replace(one, model=model) for one in agents])
    for sharer, receiver, given in edges:
        options = {key: given[key] for key in ("share", "as_", "sink") if key in given}
        rest = {key: given[key] for key in ("when", "loop") if key in given}
        flow.connect(sharer, receiver, SameModelCacheChannel(**options), **rest)
    return flow


# Each case: agents, edges, and per edge the mode that is planned and taken.
CASES: dict[str, tuple[list[Agent], list[tuple[str, str, dict[str, Any]]], list[str]]] = {
    "reader and solver": (
        [reads("r"), agent("s")],
        [("r", "s", {})],
        ["continuation"],
    ),
    "a system prompt at the receiver": (
        [reads("r"), agent("s", system="Solve.")],
        [("r", "s", {})],
        ["splice"],
    ),
    "a system prompt at the sharer": (
        [reads("r", system="Read."), agent("s")],
        [("r", "s", {})],
        ["splice"],
    ),
    "equal system prompts": (
        [reads("r", system="Be short."), agent("s", system="Be short.")],
        [("r", "s", {})],
        ["continuation"],
    ),
    "two readers": (
        [reads("r1"), reads("r2"), agent("s")],
        [("r1", "s", {}), ("r2", "s", {})],
        ["continuation", "splice"],
    ),
    "the output of a writer": (
        [agent("w"), agent("s")],
        [("w", "s", {})],
        ["splice"],
    ),
    "the output as an assistant's": (
        [agent("w"), agent("s")],
        [("w", "s", {"as_": "assistant"})],
        ["splice"],
    ),
    "the whole context": (
        [agent("w"), agent("s")],
        [("w", "s", {"share": "context"})],
        ["continuation"],
    ),
    "a chain of whole contexts": (
        [agent("a"), agent("b"), agent("c")],
        [("a", "b", {"share": "context"}), ("b", "c", {"share": "context"})],
        ["continuation", "continuation"],
    ),
    "a reader of a reader": (
        [reads("a"), reads("b"), agent("c")],
        [("a", "b", {}), ("b", "c", {"share": "context"})],
        ["continuation", "continuation"],
    ),
    "a whole context behind another": (
        [agent("a"), agent("b"), agent("c")],
        [("a", "c", {"share": "context"}), ("b", "c", {"share": "context"})],
        ["continuation", "splice"],
    ),
    "a quote at the start of the prompt": (
        [reads("r"), agent("s", "{{ r.text }}\nthe question")],
        [("r", "s", {})],
        ["continuation"],
    ),
    "a quote behind words": (
        [reads("r"), agent("s", "read: {{ r.text }}")],
        [("r", "s", {})],
        ["splice"],
    ),
    "a quote behind the same words": (
        [reads("r", "read: {{ inputs.document }}"), agent("s", "{{ r.text }} so?")],
        [("r", "s", {})],
        ["continuation"],
    ),
    "a quote that is changed": (
        [reads("r"), agent("s", "{{ r.text | upper }}")],
        [("r", "s", {})],
        ["text"],
    ),
    "a prompt of a writer": (
        [agent("w"), agent("s")],
        [("w", "s", {"share": "prompt"})],
        ["continuation"],
    ),
    "a fan-out": (
        [reads("r"), agent("a"), agent("b")],
        [("r", "a", {}), ("r", "b", {})],
        ["continuation", "continuation"],
    ),
    "a diamond": (
        [reads("r"), agent("a"), agent("b"), agent("j")],
        [
            ("r", "a", {}),
            ("r", "b", {}),
            ("a", "j", {"share": "context"}),
            ("b", "j", {"share": "output"}),
        ],
        ["continuation", "continuation", "continuation", "splice"],
    ),
    "a condition": (
        [reads("r"), agent("s")],
        [("r", "s", {"when": "r.text"})],
        ["continuation"],
    ),
    "a loop's way there": (
        [agent("d", "{% if turn > 1 %}{{ c.text }}{% endif %} draft", max_turns=2), agent("c")],
        [("d", "c", {"share": "context"}), ("c", "d", {"loop": True})],
        ["continuation", "splice"],
    ),
    "a whole context inside a prompt": (
        [agent("w"), agent("s", "so: {{ w.text }}")],
        [("w", "s", {"share": "context"})],
        ["text"],
    ),
}


def taken(reason: str, channel: str) -> str:
    """The mode that a run's report tells."""
    if channel == TEXT:
        return TEXT
    return "continuation" if reason.startswith("continuation") else "splice"


@pytest.mark.parametrize("name", CASES)
def test_runs_do_what_the_plan_says(models: dict[str, LocalModel], name: str) -> None:
    """Continuation, splice or text: planned before the run and reported after it, edge by edge."""
    agents, edges, expected = CASES[name]
    flow = flow_of(models["chatml"], agents, *edges)
    inputs = {"document": DOCUMENT} if "document" in flow.spec.inputs else {}
    assert [edge.mode for edge in flow.plan().edges] == expected
    report = flow.run(**inputs).report
    first = {(edge.sharer, edge.receiver): edge for edge in reversed(report.edges)}
    assert [
        taken(first[sharer, receiver].reason, first[sharer, receiver].channel)
        for sharer, receiver, _ in edges
    ] == expected


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (template, name)
        for template in ("smollm2", "llama3", "gemma", "mistral", "qwen3", "plain")
        for name in CASES
    ],
)
def test_plans_hold_in_every_template(
    models: dict[str, LocalModel], name: str, template: str
) -> None:
    """What is planned is what is taken, whatever the template."""
    agents, edges, _ = CASES[name]
    flow = flow_of(models[template], agents, *edges)
    inputs = {"document": DOCUMENT} if "document" in flow.spec.inputs else {}
    first = {
        (edge.sharer, edge.receiver): edge for edge in reversed(flow.run(**inputs).report.edges)
    }
    found = {ends: taken(edge.reason, edge.channel) for ends, edge in first.items()}
    assert found == {(edge.sharer, edge.receiver): edge.mode for edge in flow.plan().edges}


@pytest.mark.parametrize("template", ["smollm2", "llama3", "gemma", "mistral", "qwen3", "plain"])
def test_a_reader_is_continued_in_every_template(
    models: dict[str, LocalModel], template: str
) -> None:
    """The document is reused where turns stay apart; merged into one turn its words still are."""
    model = models[template]
    report = reader_solver(model, model).run(document=DOCUMENT, question=QUESTION).report
    (edge,) = report.edges
    words = len(model.text.encode_words(DOCUMENT))
    assert edge.reused + edge.repaired >= words - 4
    assert report.agents["solver"][0].reused_tokens >= words - 8


def only(flow: Workflow) -> EdgePlan:
    (edge,) = flow.plan().edges
    return edge


def test_a_system_prompt_is_named_and_advised_against(models: dict[str, LocalModel]) -> None:
    """The plan says what stands in the way, and where to put it."""
    model = models["chatml"]
    edge = only(reader_solver(model, model, system="You solve."))
    assert "a system prompt of its own" in edge.reason
    assert "put the instructions into the prompt" in edge.advice


def test_a_message_behind_another_is_advised_to_come_first(models: dict[str, LocalModel]) -> None:
    """Of two readers the second is told what it could do."""
    agents, edges, _ = CASES["two readers"]
    first, second = flow_of(models["chatml"], agents, *edges).plan().edges
    assert first.advice == "" and "let this edge come first" in second.advice


def test_text_by_name_needs_no_excuse(models: dict[str, LocalModel]) -> None:
    """An edge that asks for text gets it, costs no state, and is no fallback."""
    model = models["chatml"]
    edge = only(reader_solver(model, model, TextChannel()))
    assert (edge.channel, edge.mode, edge.bytes_per_token, edge.fell_back) == (TEXT, TEXT, 0, False)
    assert edge.reason == "the workflow asks for text"


def test_auto_between_other_weights_is_text_and_says_why(models: dict[str, LocalModel]) -> None:
    """Auto steps down without a fallback; a cache asked for by name is one."""
    pair = models["chatml"], models["other"]
    auto, named = only(reader_solver(*pair)), only(reader_solver(*pair, CACHE))
    assert (auto.mode, auto.fell_back) == (TEXT, False) and "weights" in auto.reason
    assert (named.mode, named.fell_back) == (TEXT, True) and "weights" in named.reason


def test_a_cache_that_must_not_fall_back_is_refused(models: dict[str, LocalModel]) -> None:
    """Every such edge is named, with the way out."""
    flow = reader_solver(models["chatml"], models["other"], CACHE, fallback="error")
    with pytest.raises(WorkflowError, match="other weights") as caught:
        flow.plan()
    (problem,) = caught.value.problems
    assert problem.where == "edges[0].channel" and "channel: text" in problem.fix


def test_for_each_goes_by_text(models: dict[str, LocalModel]) -> None:
    """Items have contexts of their own, so no one state stands for them."""
    model = models["chatml"]
    each = Agent("each", model, prompt="{{ item }}", for_each="inputs.rows")
    flow = Workflow("w", [each, Agent("s", model, prompt="x")]).connect("each", "s")
    edge = only(flow)
    assert edge.mode == TEXT and "once per item" in edge.reason


@pytest.mark.parametrize("dynamic", [False, True])
def test_keys_that_cannot_be_moved_go_by_text_where_they_would_be_spliced(
    models: dict[str, LocalModel], monkeypatch: pytest.MonkeyPatch, dynamic: bool
) -> None:
    """A model whose keys cannot be shifted still continues; what it cannot splice is text."""
    model = models["chatml"]

    def shifts(self: LocalModel) -> bool:
        if dynamic:
            raise ModelSupportError("frequencies change with the length")
        return False

    monkeypatch.setattr(LocalModel, "shifts_keys", property(shifts))
    assert only(reader_solver(model, model)).mode == "continuation"
    flow = reader_solver(model, model, system="You solve.")
    edge = only(flow)
    assert (edge.channel, edge.mode) == (TEXT, TEXT) and "cannot be moved" in edge.reason
    (carried,) = flow.run(document=DOCUMENT, question=QUESTION).report.edges
    assert carried.channel == TEXT


def test_tokens_are_known_where_the_inputs_are(models: dict[str, LocalModel]) -> None:
    """A shared prompt of inputs alone is counted; without inputs it is unknown."""
    model = models["chatml"]
    flow = reader_solver(model, model)
    assert only(flow).tokens is None
    (edge,) = flow.plan(document=DOCUMENT, question=QUESTION).edges
    assert edge.tokens == flow.run(document=DOCUMENT, question=QUESTION).report.edges[0].tokens


def test_a_token_s_state_is_sized(models: dict[str, LocalModel]) -> None:
    """Two layers of two heads of eight, keys and values, four bytes each."""
    model = models["chatml"]
    assert only(reader_solver(model, model)).bytes_per_token == 2 * 2 * 2 * 8 * 4


def test_a_template_s_oddities_are_noted(models: dict[str, LocalModel]) -> None:
    """The plan shows what is unusual about a model's template."""
    notes = {name: _notes(models[name]) for name in ("chatml", "gemma", "plain")}
    assert notes["chatml"] == ()
    assert any("two user turns" in note for note in notes["gemma"])
    assert any("no chat template" in note for note in notes["plain"])


def _notes(model: LocalModel) -> tuple[str, ...]:
    (notes,) = reader_solver(model, model).plan().notes.values()
    return notes


def test_a_plan_is_plain_data(models: dict[str, LocalModel]) -> None:
    """`plan --json` has the ends under from and to."""
    model = models["chatml"]
    plan = reader_solver(model, model).plan()
    assert isinstance(plan, Plan)
    (edge,) = plan.to_dict()["edges"]
    assert (edge["from"], edge["to"], edge["mode"]) == ("reader", "solver", "continuation")


def test_planning_does_not_need_the_inputs(models: dict[str, LocalModel]) -> None:
    """The plan without inputs has the same modes as with them."""
    model = models["chatml"]
    flow = reader_solver(model, model, system="x")
    agents = dict.fromkeys(flow.spec.agents, model)
    blind = plan_workflow(flow.spec, agents)
    seen = plan_workflow(flow.spec, agents, {"document": DOCUMENT, "question": QUESTION})
    assert [one.mode for one in blind.edges] == [one.mode for one in seen.edges]


def test_an_outline_ends_with_the_agent_s_own_words(models: dict[str, LocalModel]) -> None:
    """A context is the opening, the messages in order, the prompt, and what is written."""
    agents, edges, _ = CASES["two readers"]
    flow = flow_of(models["chatml"], agents, *edges)
    pieces = outline(flow.spec, "s")
    assert [piece.edge for piece in pieces if piece.kind == "prompt"] == [0, 1, None]
    assert pieces[0].kind == "system"
    assert pieces[-2].label == "what s wrote"


# Bridges: each case is an edge, what the bridge is, and what the plan says.

PROJECTED = "projected_cache"


def bridged(
    models: dict[str, LocalModel],
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
        plan.edges[0].mode == "projected" and not plan.unfitted
    )
    return plan.edges[0]


@pytest.mark.parametrize("channel", ["auto", PROJECTED])
@pytest.mark.parametrize(
    ("bridge", "edge", "mode", "reason", "advice"),
    [
        ({"earned": 0.91}, {}, "projected", "keeps at least 0.91 (0.8 asked)", ""),
        ({"earned": 0.8}, {}, "projected", "rank 512, 11 MB, retention 0.93", ""),
        ({"earned": 0.9, "native_layers": 2}, {}, "projected", "runs its first 2 layers", ""),
        (
            {"earned": 0.7999},
            {},
            TEXT,
            "keeps at least 0.79, and this edge asks",
            "min_retention: 0.79",
        ),
        ({"earned": 0.29}, {}, TEXT, "keeps at least 0.29", "min_retention: 0.29 on this edge"),
        ({"earned": 0.29}, {"min_retention": 0.29}, "projected", "keeps at least 0.29", ""),
        ({"earned": 0.9}, {"min_retention": 0.95}, TEXT, "this edge asks for 0.95", "0.90"),
        ({"earned": -0.1}, {"min_retention": 0.0}, TEXT, "keeps at least -0.10", ""),
        (
            {"earned": None},
            {},
            TEXT,
            "never audited",
            "unspoken bridge audit their/model our/model",
        ),
        ({"earned": None}, {"min_retention": 0.0}, TEXT, "never audited", "bridge audit"),
        (None, {}, TEXT, "other weights, and no bridge from", "unspoken bridge fit"),
    ],
)
def test_a_bridge_is_held_to_what_the_edge_asks(
    models: dict[str, LocalModel],
    channel: str,
    bridge: dict[str, Any] | None,
    edge: dict[str, Any],
    mode: str,
    reason: str,
    advice: str,
) -> None:
    """Above the edge's retention it is used; below, unaudited or missing the edge is text."""
    plan = bridged(models, channel, bridge=bridge, **edge)
    assert plan.mode == mode and plan.channel == (PROJECTED if mode == "projected" else TEXT)
    assert reason in plan.reason
    assert advice in plan.advice and (bool(advice) or "min_retention" not in plan.advice)
    assert plan.fell_back == (channel == PROJECTED and mode == TEXT)
    used = bridge if bridge and mode == "projected" else {}
    assert plan.retention == used.get("earned")
    assert plan.native_layers == used.get("native_layers", 0)
    assert (plan.bytes_per_token > 0) == (mode == "projected")


def test_a_missing_bridge_s_command_names_both_models(models: dict[str, LocalModel]) -> None:
    """It can be copied as it stands."""
    ends = models["chatml"].ref, models["other"].ref
    assert f"unspoken bridge fit {ends[0]} {ends[1]}" in bridged(models).advice


def test_a_missing_bridge_is_to_be_fitted_where_the_file_says_so(
    models: dict[str, LocalModel],
) -> None:
    """bridges: fit is no fallback, and no error."""
    for channel in ("auto", PROJECTED):
        plan = bridged(models, channel, bridges="fit", fallback="error")
        assert (plan.mode, plan.channel, plan.unfitted) == ("projected", PROJECTED, True)
        assert "fitted on the first run" in plan.reason and not plan.fell_back
    assert not bridged(models, bridges="fit", bridge={}).unfitted


def test_equal_weights_need_no_bridge(models: dict[str, LocalModel]) -> None:
    """Auto continues the state; a bridge by name is text, unless it leads a model to itself."""
    ends = ("chatml", "chatml")
    assert bridged(models, ends=ends, bridge={}).mode == "continuation"
    named = bridged(models, PROJECTED, ends=ends, bridges="fit")
    assert named.mode == TEXT and named.fell_back
    assert "the same weights" in named.reason and "same_model_cache" in named.advice
    assert bridged(models, PROJECTED, ends=ends, bridge={}).mode == "projected"


def test_the_same_model_channel_by_name_takes_no_bridge(models: dict[str, LocalModel]) -> None:
    """What was asked for by name is not replaced by something else than text."""
    assert bridged(models, CACHE, bridge={}).mode == TEXT


def test_a_bridge_given_in_python_is_held_to_the_edge_too(models: dict[str, LocalModel]) -> None:
    """It needs no store; unaudited it is used only where the edge asks for nothing."""
    pair = models["chatml"], models["other"]

    def plan(earned: float | None, **edge: Any) -> EdgePlan:
        return bridged(models, ProjectedCacheChannel(FakeBridge(*pair, earned)), **edge)

    assert plan(0.9).mode == "projected"
    assert plan(0.7).mode == TEXT and plan(0.7, min_retention=0.5).mode == "projected"
    assert plan(None).mode == TEXT
    unaudited = plan(None, min_retention=0.0)
    assert unaudited.mode == "projected" and "never audited" in unaudited.reason


def test_a_bridge_serves_no_message_that_the_prompt_changes(models: dict[str, LocalModel]) -> None:
    """Filtered words are other words."""
    pair = models["chatml"], models["other"]
    agents = [reads("r"), agent("s", "{{ r.text | upper }}")]
    flow = Workflow("w", [replace(one, model=m) for one, m in zip(agents, pair, strict=True)])
    flow.connect("r", "s", PROJECTED)
    plan = plan_workflow(
        flow.spec, {"r": pair[0], "s": pair[1]}, find_bridge=finder(FakeBridge(*pair))
    )
    (edge,) = plan.edges
    assert edge.mode == TEXT and "changes the message's words" in edge.reason


def test_a_broken_bridge_is_told(models: dict[str, LocalModel]) -> None:
    """What the store says of it stands in the plan."""

    def broken(sharer: LocalModel, receiver: LocalModel) -> None:
        raise BridgeError("bridge.json is not JSON", fix="fit it again")

    pair = models["chatml"], models["other"]
    flow = reader_solver(*pair)
    (edge,) = plan_workflow(
        flow.spec, {"reader": pair[0], "solver": pair[1]}, find_bridge=broken
    ).edges
    assert edge.mode == TEXT and "bridge.json is not JSON" in edge.reason
    assert edge.advice.endswith("fit it again")


def test_every_edge_into_a_receiver_has_its_own_bridge(models: dict[str, LocalModel]) -> None:
    """Two sharers of two models: each edge carries the bridge that leads from its own."""
    receiver, sharers = models["chatml"], (models["other"], models["third"])
    readers = [
        Agent(f"r{n}", one, prompt="{{ inputs.document }}", generate=None)
        for n, one in enumerate(sharers)
    ]
    flow = Workflow("w", [*readers, Agent("s", receiver, prompt="so?")])
    flow.connect("r0", "s").connect("r1", "s")
    bridges = [FakeBridge(one, receiver) for one in sharers]
    agents = {"r0": sharers[0], "r1": sharers[1], "s": receiver}
    plan = plan_workflow(flow.spec, agents, find_bridge=finder(*bridges))
    assert [plan.channels[n].bridge for n in (0, 1)] == bridges  # type: ignore[attr-defined]
