"""Edges between fine-tunes of one base: plans by policy and profile, and runs."""

from typing import Any

import pytest
import torch
from flows import DOCUMENT, QUESTION, Pair, reader_solver, sibling, sound
from messages import context_of
from sample_profiles import point, profile_of
from turns import Turn, inbound, take, writes

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.prompts.context import ChatTurn, Quote
from unspoken.agents.spec.loader import loads
from unspoken.channels import SameModelCacheChannel
from unspoken.channels.base import Arrival
from unspoken.channels.errors import WorkflowError
from unspoken.channels.finetunes.recompute import bytes_per_token
from unspoken.channels.finetunes.store import ProfileStore

CACHE = "same_model_cache"


pytestmark = pytest.mark.usefixtures("cache")


def layers(model: LocalModel) -> int:
    return len(model.geometry.layers)


def flow(models: Pair, channel: Any = CACHE, **edge: Any) -> Workflow:
    return reader_solver(*models, channel, **edge)


def keep(models: Pair, *points: Any) -> None:
    ProfileStore().save(profile_of(*models, *points))


def test_without_a_profile_the_cache_is_refused_with_the_command_for_one(models: Pair) -> None:
    (edge,) = flow(models).plan().edges
    assert edge.mode == "text" and (edge.fallback is not None)
    result = flow(models).run(document=DOCUMENT, question=QUESTION)
    assert sound(result.report).edges[0].channel == "text"
    assert "no profile" in result.report.fallbacks[0][1]


def test_with_a_profile_within_the_bound_it_is_used(models: Pair) -> None:
    """The layers of the cheapest point are recomputed, and the report says which, and why."""
    keep(models, point((), 0.5, 2), point(((1, 2),), 0.004, 2), point(((0, 2),), 0.0, 2))
    (edge,) = flow(models, "auto").plan(document=DOCUMENT, question=QUESTION).edges
    assert (edge.mode, edge.channel, edge.recompute) == ("recompute", CACHE, ((1, 2),))
    assert edge.kl == pytest.approx(0.0044)
    assert edge.bytes_per_token == bytes_per_token(models[0].geometry, 4, ((1, 2),))
    report = sound(flow(models, "auto").run(document=DOCUMENT, question=QUESTION).report)
    carried = report.edges[0]
    assert (carried.channel, carried.exact, carried.recomputed_layers) == (CACHE, False, 1)
    assert report.agents["solver"][0].recomputed_tokens >= carried.tokens
    assert not report.fallbacks


def test_a_profile_that_is_measured_between_two_runs_is_used(models: Pair) -> None:
    """Plan and run agree, whatever an earlier run found."""
    workflow = flow(models, "auto")
    first = workflow.run(document=DOCUMENT, question=QUESTION).report
    keep(models, point(((1, 2),), 0.004, 2))
    assert workflow.plan().edges[0].mode == "recompute"
    second = workflow.run(document=DOCUMENT, question=QUESTION).report
    assert (first.edges[0].mode, second.edges[0].mode) == ("text", "recompute")


def test_beyond_the_bound_it_is_text(models: Pair) -> None:
    """The interval's upper end counts, not the mean."""
    keep(models, point(((1, 2),), 0.0095, 2), point(((0, 2),), 0.0, 2))
    (edge,) = flow(models, "auto").plan().edges
    assert edge.mode == "text"
    (edge,) = flow(models, "auto", max_kl=0.02).plan().edges
    assert edge.mode == "recompute"


def test_behind_other_tokens_the_other_places_count(models: Pair) -> None:
    keep(models, point(((1, 2),), 0.001, 2, moved=0.02), point(((0, 1),), 0.3, 2))
    (edge,) = flow(models, "auto").plan().edges
    assert edge.mode == "recompute"
    (edge,) = flow(models, "auto", system="Be brief.").plan().edges
    assert edge.mode == "text"
    (edge,) = flow(models, "auto", system="Be brief.", max_kl=0.03).plan().edges
    assert edge.recompute == ((1, 2),)


def test_a_point_that_is_no_faster_than_text_is_not_taken(models: Pair) -> None:
    keep(models, point(((1, 2),), 0.001, 2, speedup=0.9))
    assert flow(models, "auto").plan().edges[0].mode == "text"


def test_a_policy_may_refuse_whatever_the_profile_says(models: Pair) -> None:
    keep(models, point((), 0.0, 2))
    (edge,) = flow(models, recompute="none").plan().edges
    assert edge.mode == "text" and edge.fallback is not None


@pytest.mark.parametrize(("layer_ranges", "anew"), [([], 0), ([[0, 1]], 1), ([[0, 2]], 2)])
def test_a_policy_may_name_the_layers(
    models: Pair, layer_ranges: list[list[int]], anew: int
) -> None:
    chosen = flow(models, recompute=layer_ranges)
    assert chosen.plan().edges[0].mode == "recompute"
    (carried,) = sound(chosen.run(document=DOCUMENT, question=QUESTION).report).edges
    assert carried.recomputed_layers == anew and carried.exact == (anew == 2)


def test_all_layers_anew_write_what_text_writes(models: Pair) -> None:
    anew = flow(models, recompute=[[0, 2]]).run(document=DOCUMENT, question=QUESTION)
    text = flow(models, "text").run(document=DOCUMENT, question=QUESTION)
    assert anew.outputs == text.outputs


def test_layers_that_the_model_lacks_are_a_mistake(models: Pair) -> None:
    """Not a reason to fall back: the workflow is wrong."""
    with pytest.raises(WorkflowError) as caught:
        flow(models, recompute=[[0, 7]]).plan()
    assert "edges[0].recompute" in str(caught.value) and "[0, 7]" in str(caught.value)


@pytest.mark.parametrize(
    ("edge", "system"),
    [
        ({"codec": "int8"}, None),
        ({"repair": {"sink": 2}}, "Be brief."),
        ({"repair": "none"}, "Be brief."),
    ],
)
def test_a_bound_is_not_used_where_it_was_not_measured(
    models: Pair, edge: dict[str, Any], system: str | None
) -> None:
    keep(models, point(((1, 2),), 0.001, 2))
    (planned,) = flow(models, "auto", system=system, **edge).plan().edges
    assert planned.mode == "text"


def test_a_profile_of_another_dtype_says_nothing(models: Pair) -> None:
    profile = profile_of(*models, point(((1, 2),), 0.001, 2))
    side = profile.receiver.model_copy(update={"layer_dtype": "bfloat16"})
    ProfileStore().save(profile.model_copy(update={"receiver": side}))
    (edge,) = flow(models, "auto").plan().edges
    assert edge.mode == "text"


def test_layers_chosen_for_the_prefix_serve_there_alone(models: Pair) -> None:
    """The second message of a loop stands behind the first: other tokens than at its sharer."""
    keep(models, point(((1, 2),), 0.001, 2, moved=0.5))
    base, tuned = models
    agents = [
        Agent(
            "a",
            base,
            prompt="Say {{ turn }}.",
            max_turns=2,
            memory="turn",
            generate={"max_new_tokens": 3},
        ),
        Agent("b", tuned, prompt="Again.", max_turns=2, generate={"max_new_tokens": 3}),
    ]
    made = Workflow("w", agents)
    made.connect(agents[0], agents[1], "auto", share="prompt")
    made.connect(agents[1], agents[0], "text", loop=True)
    assert made.plan().edges[0].mode == "recompute"
    report = sound(made.run().report)
    first, _, second = report.edges
    assert first.recomputed_layers == 1 and second.channel == "text"
    assert second.fallback is not None and report.fallbacks


def test_an_edge_that_must_not_fall_back_is_an_error(models: Pair) -> None:
    with pytest.raises(WorkflowError) as caught:
        flow(models, fallback="error").plan()
    assert "no profile" in str(caught.value)


def test_a_broken_profile_is_said_to_be_one(models: Pair) -> None:
    keep(models, point((), 0.0, 2))
    (folder,) = (entry.path for entry in ProfileStore().entries())
    (folder / "profile.json").write_text("{")
    (edge,) = flow(models).plan().edges
    assert edge.mode == "text" and edge.fallback is not None
    assert "profile.json" in edge.fallback.cause


def test_a_channel_object_names_its_layers(models: Pair) -> None:
    """In Python as in YAML, and back."""
    made = flow(models, SameModelCacheChannel(share="prompt", layer_ranges=((0, 1),)))
    assert made.spec.edges[0].recompute == ((0, 1),)
    assert made.plan().edges[0].recompute == ((0, 1),)


@pytest.mark.parametrize("value", ["all", [[1, 1]], [[1, 2], [0, 1]], [[0]], [[-1, 2]]])
def test_layers_that_make_no_sense_are_refused(value: Any) -> None:
    text = (
        "name: w\nmodels: {m: x}\nagents:\n  a: {model: m, prompt: a}\n  b: {model: m, prompt: b}\n"
        f"edges:\n  - {{from: a, to: b, recompute: {value}}}\n"
    )
    with pytest.raises(WorkflowError):
        loads(text)


def test_an_output_brings_the_hidden_states_of_its_tokens(models: Pair) -> None:
    """A turn that writes keeps the layer inputs that a reading of the same ids gives."""
    model = models[0]
    request = Turn(context_of(model, DOCUMENT), (), None, writes(), True, (1,))
    _, outcome = take(model, request)
    assert outcome.state is not None
    again = model.read(outcome.context.ids, (1,))
    torch.testing.assert_close(outcome.state.hidden[1], again.hidden[1], atol=1e-4, rtol=1e-4)


def test_hidden_states_reach_back_into_an_agents_own_past(models: Pair) -> None:
    model = models[0]
    first = take(model, Turn(context_of(model, "one"), (), None, writes(), True, (1,)))[1]
    assert first.state is not None
    longer = model.context_builder.compose([ChatTurn("user", ("two",))], earlier=first.context)
    own = (first.context.ids, first.state)
    second = take(model, Turn(longer, (), own, None, True, (1,)))[1]
    assert second.state is not None and second.state.hidden_first == 0
    again = model.read(second.context.ids, (1,))
    torch.testing.assert_close(second.state.hidden[1], again.hidden[1], atol=1e-4, rtol=1e-4)


def test_a_stopped_turn_keeps_the_hidden_states_of_what_it_keeps(models: Pair) -> None:
    """A stop string leaves tokens behind that were computed and are cut off."""
    model = models[0]
    free = take(model, Turn(context_of(model, "go on"), (), None, writes(12), True, (1,)))[1]
    stop = free.text[3:5]
    request = Turn(context_of(model, "go on"), (), None, writes(12, stop=[stop]), True, (1,))
    _, outcome = take(model, request)
    assert outcome.state is not None and outcome.state.hidden_first == 0
    again = model.read(outcome.context.ids, (1,))
    torch.testing.assert_close(outcome.state.hidden[1], again.hidden[1], atol=1e-4, rtol=1e-4)


def test_a_chain_of_three_models_recomputes_twice(models: Pair) -> None:
    """The middle agent's output has hidden states though what it read was taken over."""
    base, tuned = models
    third = sibling(tuned)
    agents = [
        Agent("a", base, prompt="{{ inputs.document }}", generate=None),
        Agent("b", tuned, prompt="Say it.", generate={"max_new_tokens": 6}),
        Agent("c", third, prompt="Say it again.", generate={"max_new_tokens": 4}),
    ]
    made = Workflow("chain", agents)
    made.connect(agents[0], agents[1], CACHE, recompute=[[1, 2]])
    made.connect(agents[1], agents[2], CACHE, recompute=[[1, 2]])
    report = sound(made.run(document=DOCUMENT).report)
    assert [edge.recomputed_layers for edge in report.edges] == [1, 1]
    assert all(edge.repaired > 0 for edge in report.edges)
    assert all(report.agents[name][0].recomputed_tokens > 0 for name in "bc")
    assert not any(edge.exact for edge in report.edges)
    assert not report.fallbacks


def test_hidden_states_are_whole_over_several_passes(
    models: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models[0]
    whole = model.read(context_of(model, DOCUMENT).ids, (1,))
    monkeypatch.setattr("unspoken.agents.engines.turn.most_prefilled", lambda device, beside: 16)
    request = Turn(context_of(model, DOCUMENT), (), None, None, True, (1,))
    _, outcome = take(model, request)
    assert outcome.state is not None
    torch.testing.assert_close(outcome.state.hidden[1], whole.hidden[1], atol=1e-4, rtol=1e-4)


def test_hidden_states_of_repaired_tokens_are_not_those_they_came_with(models: Pair) -> None:
    """Rows after a splice's repaired ones keep their hidden states; those before have none."""
    model = models[0]
    message = model.message(DOCUMENT, capture=(1,))
    context = model.context_builder.compose(
        [ChatTurn("user", ("first",)), ChatTurn("user", (Quote(message, message.segments[0]),))]
    )
    (span,) = context.spans(message)
    arrival = Arrival(message=message, spans=(span,), context=context.ids)
    delivery = inbound(0, SameModelCacheChannel(sink=3), arrival)
    _, outcome = take(model, Turn(context, (delivery,), None, None, True, (1,)))
    assert outcome.state is not None and message.state is not None
    assert outcome.state.hidden_first == span.at + 3
    kept = message.state.hidden[1][span.source + 3 : span.source + span.length - 1]
    assert torch.equal(outcome.state.hidden[1][: span.length - 4], kept)  # the last is computed
