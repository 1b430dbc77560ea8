"""The plan: which channel each edge gets and why, against what runs then do."""

from dataclasses import replace
from typing import Any

import pytest
from flows import DOCUMENT, QUESTION, Models, reader_solver

from unspoken.agents import Agent, EdgePlan, LocalModel, Workflow
from unspoken.agents.planning.outline import Outlines
from unspoken.agents.planning.planner import plan_workflow
from unspoken.channels import SameModelCacheChannel, TextChannel
from unspoken.channels.errors import ModelSupportError, WorkflowError

CACHE, TEXT = "same_model_cache", "text"


def agent(name: str, prompt: str = "", **settings: Any) -> Agent:
    settings.setdefault("generate", {"max_new_tokens": 4})
    return Agent(name, "model", prompt=prompt or f"words of {name}", **settings)


def reads(name: str, prompt: str = "", **settings: Any) -> Agent:
    return agent(name, prompt, generate=None, **settings)


def flow_of(
    model: LocalModel, agents: list[Agent], *edges: tuple[str, str, dict[str, Any]]
) -> Workflow:
    """A workflow on one model; an edge is (sharer, receiver, options)."""
    flow = Workflow("w", [replace(agent, model=model) for agent in agents])
    for sharer, receiver, given in edges:
        options = {key: given[key] for key in ("share", "as_", "sink") if key in given}
        rest = {key: given[key] for key in ("when", "loop") if key in given}
        flow.connect(sharer, receiver, SameModelCacheChannel(**options), **rest)
    return flow


# Each case: agents, edges, and per edge the mode that is planned and taken.
CASES: dict[str, tuple[list[Agent], list[tuple[str, str, dict[str, Any]]], list[str]]] = {
    "reader and solver": ([reads("r"), agent("s")], [("r", "s", {})], ["continuation"]),
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
    "the output of a writer": ([agent("w"), agent("s")], [("w", "s", {})], ["splice"]),
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
    "a condition": ([reads("r"), agent("s")], [("r", "s", {"when": "r.text"})], ["continuation"]),
    "a loop's way there": (
        [agent("d", "{% if turn > 1 %}{{ c.text }}{% endif %} draft", max_turns=2), agent("c")],
        [("d", "c", {"share": "context"}), ("c", "d", {"loop": True})],
        ["continuation", "splice"],
    ),
    "a loop into turns of their own": (
        [agent("d", "{{ turn }}", max_turns=3, memory="turn"), agent("c")],
        [("d", "c", {"share": "context"}), ("c", "d", {"loop": True, "share": "context"})],
        ["continuation", "continuation"],
    ),
    "an output looped into turns of their own": (
        [agent("d", max_turns=2, memory="turn"), agent("c")],
        [("d", "c", {"share": "context"}), ("c", "d", {"loop": True})],
        ["continuation", "splice"],
    ),
    "a loop's words that are changed": (
        [agent("d", "draft {{ c.text | upper }}", max_turns=2), agent("c")],
        [("d", "c", {"share": "context"}), ("c", "d", {"loop": True})],
        ["continuation", "text"],
    ),
    "a whole context inside a prompt": (
        [agent("w"), agent("s", "so: {{ w.text }}")],
        [("w", "s", {"share": "context"})],
        ["text"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_runs_do_what_the_plan_says(models: Models, name: str) -> None:
    """Continuation, splice or text: planned before the run and reported after it, edge by edge."""
    agents, edges, expected = CASES[name]
    flow = flow_of(models["chatml"], agents, *edges)
    inputs = {"document": DOCUMENT} if "document" in flow.spec.inputs else {}
    planned = flow.plan().edges
    assert [edge.mode for edge in planned] == expected
    assert all(bool(edge.advice) == (edge.mode != "continuation") for edge in planned)
    report = flow.run(**inputs).report
    first = {(edge.sharer, edge.receiver): edge for edge in reversed(report.edges)}
    assert [first[sharer, receiver].mode for sharer, receiver, _ in edges] == expected


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (template, name)
        for template in ("smollm2", "llama3", "gemma", "mistral", "qwen3", "plain")
        for name in CASES
    ],
)
def test_plans_hold_in_every_template(models: Models, name: str, template: str) -> None:
    """What is planned is what is taken, whatever the template."""
    agents, edges, _ = CASES[name]
    flow = flow_of(models[template], agents, *edges)
    inputs = {"document": DOCUMENT} if "document" in flow.spec.inputs else {}
    first = {
        (edge.sharer, edge.receiver): edge for edge in reversed(flow.run(**inputs).report.edges)
    }
    modes = {ends: edge.mode for ends, edge in first.items()}
    assert modes == {(edge.sharer, edge.receiver): edge.mode for edge in flow.plan().edges}


@pytest.mark.parametrize("template", ["smollm2", "llama3", "gemma", "mistral", "qwen3", "plain"])
def test_a_reader_is_continued_in_every_template(models: Models, template: str) -> None:
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


def test_a_system_prompt_is_named_and_advised_against(models: Models) -> None:
    """The plan says what stands in the way, and where to put it."""
    model = models["chatml"]
    edge = only(reader_solver(model, model, system="You solve."))
    assert edge.mode == "splice"
    assert "put the instructions into the prompt" in edge.advice


def test_a_message_behind_another_is_advised_to_come_first(models: Models) -> None:
    """Of two readers the second is told what it could do."""
    agents, edges, _ = CASES["two readers"]
    first, second = flow_of(models["chatml"], agents, *edges).plan().edges
    assert first.advice == "" and "let this edge come first" in second.advice


def test_text_by_name_needs_no_excuse(models: Models) -> None:
    """An edge that asks for text gets it, costs no state, and is no fallback."""
    model = models["chatml"]
    edge = only(reader_solver(model, model, TextChannel()))
    assert (edge.channel, edge.mode, edge.bytes_per_token, edge.fallback is not None) == (
        TEXT,
        TEXT,
        0,
        False,
    )
    assert "this edge would then be a continuation" in edge.advice


def test_auto_between_other_weights_is_text_and_says_why(models: Models) -> None:
    """Auto steps down without a fallback; a cache asked for by name is one."""
    pair = models["chatml"], models["other"]
    auto, named = only(reader_solver(*pair)), only(reader_solver(*pair, CACHE))
    assert (auto.mode, auto.fallback is not None) == (TEXT, False)
    assert (named.mode, named.fallback is not None) == (TEXT, True)


def test_a_cache_that_must_not_fall_back_is_refused(models: Models) -> None:
    """Every such edge is named, with the way out."""
    flow = reader_solver(models["chatml"], models["other"], CACHE, fallback="error")
    with pytest.raises(WorkflowError, match="other weights") as caught:
        flow.plan()
    (problem,) = caught.value.problems
    assert problem.where == "edges[0].channel" and "channel: text" in problem.fix


def test_for_each_goes_by_text(models: Models) -> None:
    """Items have contexts of their own, so no one state stands for them."""
    model = models["chatml"]
    each = Agent("each", model, prompt="{{ item }}", for_each="inputs.rows")
    flow = Workflow("w", [each, Agent("s", model, prompt="x")]).connect("each", "s")
    edge = only(flow)
    assert edge.mode == TEXT


@pytest.mark.parametrize("dynamic", [False, True])
def test_keys_that_cannot_be_moved_go_by_text_where_they_would_be_spliced(
    models: Models, monkeypatch: pytest.MonkeyPatch, dynamic: bool
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
    assert (edge.channel, edge.mode) == (TEXT, TEXT)
    (carried,) = flow.run(document=DOCUMENT, question=QUESTION).report.edges
    assert carried.channel == TEXT


def test_tokens_are_known_where_the_inputs_are(models: Models) -> None:
    """A shared prompt of inputs alone is counted; without inputs it is unknown."""
    model = models["chatml"]
    flow = reader_solver(model, model)
    assert only(flow).tokens is None
    (edge,) = flow.plan(document=DOCUMENT, question=QUESTION).edges
    assert edge.tokens == flow.run(document=DOCUMENT, question=QUESTION).report.edges[0].tokens


def test_a_token_s_state_is_sized(models: Models) -> None:
    """Two layers of two heads of eight, keys and values, four bytes each."""
    model = models["chatml"]
    assert only(reader_solver(model, model)).bytes_per_token == 2 * 2 * 2 * 8 * 4


def test_a_template_s_oddities_are_noted(models: Models) -> None:
    """The plan shows what is unusual about a model's template."""
    notes = {name: _notes(models[name]) for name in ("chatml", "gemma", "plain")}
    assert notes["chatml"] == ()
    assert any("two user turns" in note for note in notes["gemma"])
    assert any("no chat template" in note for note in notes["plain"])


def _notes(model: LocalModel) -> tuple[str, ...]:
    (notes,) = reader_solver(model, model).plan().notes.values()
    return notes


def test_planning_does_not_need_the_inputs(models: Models) -> None:
    """The plan without inputs has the same modes as with them."""
    model = models["chatml"]
    flow = reader_solver(model, model, system="x")
    agents = dict.fromkeys(flow.spec.agents, model)
    blind = plan_workflow(flow.spec, agents)
    seen = plan_workflow(flow.spec, agents, {"document": DOCUMENT, "question": QUESTION})
    assert [edge.mode for edge in blind.edges] == [edge.mode for edge in seen.edges]


def test_an_outline_ends_with_the_agent_s_own_words(models: Models) -> None:
    """A context is the opening, the messages in order, the prompt, and what is written."""
    agents, edges, _ = CASES["two readers"]
    flow = flow_of(models["chatml"], agents, *edges)
    pieces = Outlines(flow.spec)["s"]
    assert [piece.edge for piece in pieces if piece.key[0] == "words"] == [0, 1, None]
    assert pieces[0].key[0] == "system"
    assert pieces[-2].label == "what s wrote"
