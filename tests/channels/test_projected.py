"""The projected channel: tokens aligned by their text, counted, refused for other models."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_bridge import FakeBridge, finder
from flows import DOCUMENT, QUESTION, own_cache, reader_solver, sibling, sound, tiny_model
from projections import WORDS, arrival_of, context_of, message_of, report, take
from tiny import tiny_gemma3, tiny_tokenizer

from unspoken.agents import Agent, GenerateSpec, LocalModel, Workflow
from unspoken.agents.engines.turn import Inbound, TurnOutcome, TurnRequest, run_turn
from unspoken.channels import (
    Arrival,
    Message,
    ProjectedCacheChannel,
    SameModelCacheChannel,
    TextChannel,
)
from unspoken.channels.errors import (
    AgentError,
    IdentityMismatch,
    InputError,
    RunError,
    StateError,
    WorkflowError,
)

GIVEN = {"document": DOCUMENT, "question": QUESTION}


Models = dict[str, LocalModel]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """Three tokenizers, one on a model with sliding layers; and a fine-tune of the first."""
    folder = tmp_path_factory.mktemp("models")
    with own_cache(folder / "cache"):
        one = tiny_model(folder / "one")
        two = tiny_tokenizer((" reader", " document", "tion", " and"))
        three = tiny_tokenizer((" was", " key", "ment"))
        yield {
            "one": one,
            "tune": sibling(one, folder / "tune"),
            "two": tiny_model(folder / "two", 1, tokenizer=two, num_hidden_layers=3),
            "slides": LocalModel.load(str(tiny_gemma3(folder / "three", 2, tokenizer=three))),
        }


def same_outcome(one: TurnOutcome, other: TurnOutcome) -> None:
    assert one.text == other.text and one.context.ids == other.context.ids
    assert one.state is not None and other.state is not None
    for left, right in zip(one.state.layers, other.state.layers, strict=True):
        torch.testing.assert_close(left.keys, right.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(left.values, right.values, atol=1e-4, rtol=1e-4)


PAIRS = [("one", "two"), ("two", "one"), ("one", "tune"), ("slides", "one"), ("one", "slides")]


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
@pytest.mark.parametrize("before", ["", "some words first"])
def test_true_rows_write_what_text_writes(
    models: Models, theirs: str, ours: str, before: str
) -> None:
    """A bridge that makes the receiver's own rows gives the words and state of text."""
    sharer, receiver = models[theirs], models[ours]
    message = message_of(sharer, WORDS)
    context = context_of(receiver, *([before] if before else []), message, "who?")
    bridge = FakeBridge(sharer, receiver)
    carried = take(receiver, context, (message, ProjectedCacheChannel(bridge)))
    same_outcome(carried, take(receiver, context, (message, TextChannel())))
    usage, told = carried.usage, report(carried)
    assert not told.exact and told.channel == "projected_cache"
    assert told.reason.startswith("projected: bridge their/model -> our/model, rank 512")
    # Of a turn that is kept whole between equal tokenizers, the wrapper is the receiver's own.
    words = sum(len(ours) for _, ours in bridge.asked)
    assert words == told.tokens or (theirs, ours) == ("one", "tune")
    assert (told.repaired, told.projected) == (4, words - 4) and told.reused == 0
    assert (usage.projected_tokens, usage.recomputed_tokens) == (told.projected, told.repaired)
    assert usage.reused_tokens == 0
    parts = usage.prefilled_tokens + usage.recomputed_tokens + usage.projected_tokens
    assert usage.prompt_tokens == parts
    assert told.tokens > 20 and told.bytes > 0


@pytest.mark.parametrize("sink", [0, 3, 10**6])
def test_a_sink_is_computed_by_the_receiver(models: Models, sink: int) -> None:
    """The first tokens are recomputed; with all of them nothing approximate is left."""
    sharer, receiver = models["one"], models["two"]
    message = message_of(sharer, WORDS)
    context = context_of(receiver, message, "who?")
    channel = ProjectedCacheChannel(FakeBridge(sharer, receiver), sink=sink)
    outcome = take(receiver, context, (message, channel))
    told = report(outcome)
    assert told.repaired == min(sink, told.tokens) == outcome.usage.recomputed_tokens
    assert told.exact == (sink >= told.tokens)
    assert outcome.state is not None and outcome.state.exact == told.exact


def test_native_layers_are_counted(models: Models) -> None:
    """What the bridge runs in the receiver stands in the finer measure, layers times tokens."""
    sharer, receiver = models["one"], models["two"]
    message = message_of(sharer, WORDS)
    context = context_of(receiver, message, "who?")
    outcomes = [
        take(
            receiver,
            context,
            (message, ProjectedCacheChannel(FakeBridge(sharer, receiver, 0.9, n))),
        )
        for n in (0, 2)
    ]
    plain, native = outcomes
    (text,) = context.texts(message)
    more = native.usage.layer_tokens_computed - plain.usage.layer_tokens_computed
    assert more == report(native).layer_tokens == 2 * (text.at + text.length)
    assert replace(native.usage, layer_tokens_computed=0, ttft_s=0, seconds=0) == replace(
        plain.usage, layer_tokens_computed=0, ttft_s=0, seconds=0
    )


def test_every_token_takes_the_sharer_s_token_of_its_text(models: Models) -> None:
    """The rows asked for are those whose text reaches as far, at the sharer's own positions."""
    sharer, receiver = models["one"], models["two"]
    message = message_of(sharer, WORDS, before="something else")
    context = context_of(receiver, "a few words", message, "who?")
    bridge = FakeBridge(sharer, receiver)
    take(receiver, context, (message, ProjectedCacheChannel(bridge)))
    ((rows, ours),) = bridge.asked
    first = message.segments[0].position + message.segments[0].content[0]
    text = message.segments[0].text
    for count, row in enumerate(rows, 1):
        read = sharer.text.decode(message.context[first : row + 1])
        known = receiver.text.decode(ours[:count])
        if "\ufffd" not in known:
            assert read.startswith(known)
            shorter = sharer.text.decode(message.context[first:row])
            assert "\ufffd" in shorter or len(shorter) < len(known)
    assert receiver.text.decode(ours) == text


def test_equal_tokenizers_need_no_alignment(models: Models) -> None:
    """Between two fine-tunes of one model every token takes itself."""
    sharer, receiver = models["one"], models["tune"]
    message = message_of(sharer, WORDS, before="something else")
    context = context_of(receiver, message, "who?")
    bridge = FakeBridge(sharer, receiver)
    take(receiver, context, (message, ProjectedCacheChannel(bridge)))
    ((rows, ours),) = bridge.asked
    assert tuple(message.context[row] for row in rows) == ours == message.segments[0].words


def test_two_sharers_in_one_context(models: Models) -> None:
    """Each message goes by its own bridge, and both together write what text writes."""
    receiver = models["one"]
    sharers = models["two"], models["slides"]
    messages = [
        message_of(sharer, f"{n} {WORDS}", name=f"reader{n}") for n, sharer in enumerate(sharers)
    ]
    context = context_of(receiver, messages[0], "and", messages[1], "who?")
    channels = [ProjectedCacheChannel(FakeBridge(sharer, receiver)) for sharer in sharers]
    carried = take(receiver, context, *zip(messages, channels, strict=True))
    same_outcome(carried, take(receiver, context))
    told = report(carried), report(carried, 1)
    assert carried.usage.projected_tokens == sum(one.projected for one in told)
    assert carried.usage.recomputed_tokens == 8


def test_a_message_behind_a_projected_one_is_not_exact(models: Models) -> None:
    """Repaired whole, a message still has seen what a bridge made before it."""
    sharer, receiver = models["two"], models["one"]
    first, second = message_of(sharer, WORDS), message_of(receiver, f"and {WORDS}", name="other")
    whole = SameModelCacheChannel(sink=10**6)
    projected = ProjectedCacheChannel(FakeBridge(sharer, receiver))
    behind = take(receiver, context := context_of(receiver, first, second, "who?"),
                  (first, projected), (second, whole))  # fmt: skip
    assert report(behind, 1).repaired == report(behind, 1).tokens
    assert not report(behind, 1).exact and "approximate" in report(behind, 1).reason
    before = take(receiver, context := context_of(receiver, "now", second, first, "who?"),
                  (first, projected), (second, whole))  # fmt: skip
    assert report(before, 1).exact and not report(before).exact
    assert context.spans(second)


def test_what_a_longer_prefix_holds_counts_as_reused(models: Models) -> None:
    """A message inside another's exact prefix is neither projected nor repaired."""
    sharer, receiver = models["two"], models["one"]
    first = message_of(sharer, WORDS)
    context = context_of(receiver, first, "who?")
    state = receiver.prefill(receiver.tensor(context.ids)).state
    channel = ProjectedCacheChannel(FakeBridge(sharer, receiver))
    delivery = Inbound(0, "a -> b", channel, arrival_of(context, first), False)
    request = TurnRequest(
        context, (delivery,), (context.ids, state), GenerateSpec(max_new_tokens=1)
    )
    steps = run_turn(receiver, request)
    with torch.no_grad():
        told = next(steps).carries[0][1]  # type: ignore[union-attr]
    assert (told.exact, told.projected, told.repaired, told.reused) == (True, 0, 0, told.tokens)
    assert told.reason.startswith("continuation")


# What is refused.


def carry(models: Models, message: Message, arrival: Arrival | None = None) -> Any:
    """Carry into model two."""
    context = context_of(models["two"], message, "who?")
    channel = ProjectedCacheChannel(FakeBridge(models["one"], models["two"]))
    return channel.carry(arrival or arrival_of(context, message), models["two"])


def test_a_message_without_state_is_refused(models: Models) -> None:
    """There must be something to project."""
    message = replace(message_of(models["one"], WORDS), state=None)
    with pytest.raises(StateError, match="brings no state"):
        carry(models, message)


def test_words_that_are_not_in_the_context_are_refused(models: Models) -> None:
    """A message that the prompt changed has no place to be projected to."""
    message = message_of(models["one"], WORDS)
    bare = Arrival(message, (), context_of(models["two"], "other words").ids)
    with pytest.raises(StateError, match="does not hold the words"):
        carry(models, message, bare)


def test_a_message_without_character_ends_is_refused(models: Models) -> None:
    """Without ends there is nothing to align by."""
    message = message_of(models["one"], WORDS)
    segment = replace(message.segments[0], ends=())
    message = replace(message, segments=(segment,))
    with pytest.raises(StateError, match="0 character ends"):
        carry(models, message)


def test_a_state_of_another_model_is_refused(models: Models) -> None:
    """A bridge projects the caches of its own sharer only, into its own receiver only."""
    message = message_of(models["tune"], WORDS)
    with pytest.raises(IdentityMismatch, match="the cache of 'reader'") as caught:
        carry(models, message)
    assert caught.value.field == "weights" and "their/model" in caught.value.expected
    message = message_of(models["one"], WORDS)
    context = context_of(models["slides"], message)
    channel = ProjectedCacheChannel(FakeBridge(models["one"], models["two"]))
    with pytest.raises(IdentityMismatch, match="the receiver"):
        channel.carry(arrival_of(context, message), models["slides"])


def test_a_trimmed_state_is_refused(models: Models) -> None:
    """A sharer whose sliding layers dropped the message's rows has nothing to project there."""
    sharer, receiver = models["slides"], models["one"]
    message = message_of(sharer, WORDS)
    assert message.state is not None
    message = replace(message, state=message.state.trim(sharer.geometry))
    context = context_of(receiver, message, "who?")
    bridge = FakeBridge(sharer, receiver)
    with pytest.raises(StateError, match="holds nothing before"):
        ProjectedCacheChannel(bridge).carry(arrival_of(context, message), receiver)


def test_an_error_falls_back_to_text_or_names_its_edge(models: Models) -> None:
    """A channel that cannot serve is text with its reason, or the run's error."""
    message = replace(message_of(models["one"], WORDS), state=None)
    receiver = models["two"]
    context = context_of(receiver, message, "who?")
    channel = ProjectedCacheChannel(FakeBridge(models["one"], receiver))
    told = report(take(receiver, context, (message, channel), fallback=True))
    assert told.channel == "text" and told.reason.startswith("fallback from projected_cache")
    with pytest.raises(RunError, match="brings no state"):
        take(receiver, context, (message, channel))


def test_a_negative_sink_is_refused(models: Models) -> None:
    """A number of tokens is 0 or more."""
    with pytest.raises(InputError, match="sink is -1"):
        ProjectedCacheChannel(FakeBridge(models["one"], models["two"]), sink=-1)


# Whole workflows.


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
    assert (plan.channel, plan.mode, plan.retention) == ("projected_cache", "projected", 0.9)
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
        flow.bridge_shelf.find = finder(FakeBridge(models["one"], models["two"]))  # type: ignore[method-assign]
        result = flow.run(**GIVEN)
        assert [edge.channel for edge in sound(result.report).edges] == ["projected_cache"]


def test_a_bridge_that_is_missing_is_fitted_once(models: Models, monkeypatch: Any) -> None:
    """bridges: fit plans a fit, fits on the first run, and keeps the bridge for the next."""
    fits = []

    def fit(sharer: LocalModel, receiver: LocalModel, progress: Any) -> FakeBridge:
        fits.append((sharer, receiver))
        progress("fit", 1.0)
        return FakeBridge(sharer, receiver)

    monkeypatch.setattr("unspoken.agents.bridge_cache._lookup", lambda sharer, receiver: None)
    monkeypatch.setattr("unspoken.agents.bridge_cache._fit", fit)
    reader = Agent("reader", models["one"], prompt="{{ inputs.document }}", generate=None)
    solver = Agent("solver", models["two"], prompt="So?", generate={"max_new_tokens": 4})
    flow = Workflow("w", [reader, solver], bridges="fit").connect(reader, solver, fallback="error")
    (plan,) = flow.plan().edges
    assert (plan.channel, plan.mode, plan.unfitted) == ("projected_cache", "projected", True)
    assert "fitted on the first run" in plan.reason and not fits
    seen: list[str] = []
    flow.fit_bridges(lambda edge, stage, part: seen.append(f"{edge}: {stage}"))
    for _ in range(2):
        (edge,) = flow.run(document=DOCUMENT).report.edges
        assert edge.channel == "projected_cache"
    assert len(fits) == 1 and seen == ["reader -> solver: fit"]
    assert not flow.plan().edges[0].unfitted


def test_a_fit_that_keeps_too_little_goes_by_text(models: Models, monkeypatch: Any) -> None:
    """A fitted bridge is held to the edge's retention like any other."""
    monkeypatch.setattr("unspoken.agents.bridge_cache._lookup", lambda sharer, receiver: None)
    monkeypatch.setattr(
        "unspoken.agents.bridge_cache._fit",
        lambda sharer, receiver, progress: FakeBridge(sharer, receiver, 0.3),
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
        flow.bridge_shelf.find = finder(FakeBridge(one, two), FakeBridge(two, one))  # type: ignore[method-assign]
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
    assert plan.mode == "text" and "a bridge of other models" in plan.reason


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
    assert edge.channel == "text" and "the bridge made a state" in edge.reason


def test_a_projected_edge_without_bridge_must_not_fall_back(models: Models) -> None:
    """fallback: error names the missing bridge and the command that makes one."""
    flow = reader_solver(models["one"], models["two"], "projected_cache", fallback="error")
    with pytest.raises(WorkflowError, match="no bridge from"):
        flow.plan()
