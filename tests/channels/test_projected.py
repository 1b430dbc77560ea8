"""The projected channel: tokens aligned by their text, counted, refused for other models."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from flows import Models
from messages import WORDS, arrival_of, context_of, message_of, report, take_over
from turns import Taken, Turn, inbound, take, writes

from unspoken.agents.testing import FakeBridge
from unspoken.channels import (
    Arrival,
    Message,
    ProjectedCacheChannel,
    SameModelCacheChannel,
    TextChannel,
)
from unspoken.channels.errors import IdentityMismatch, InputError, RunError, StateError


def same_outcome(one: Taken, other: Taken) -> None:
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
    carried = take_over(receiver, context, (message, ProjectedCacheChannel(bridge)))
    same_outcome(carried, take_over(receiver, context, (message, TextChannel())))
    usage, how = carried.usage, report(carried)
    assert not how.exact and how.channel == "projected_cache"
    assert how.mode == "projected"
    # Of a turn that is kept whole between equal tokenizers, the wrapper is the receiver's own.
    words = sum(len(ours) for _, ours in bridge.asked)
    assert words == how.tokens or (theirs, ours) == ("one", "tune")
    assert (how.repaired, how.projected) == (4, words - 4) and how.reused == 0
    assert (usage.projected_tokens, usage.recomputed_tokens) == (how.projected, how.repaired)
    assert usage.reused_tokens == 0
    parts = usage.prefilled_tokens + usage.recomputed_tokens + usage.projected_tokens
    assert usage.prompt_tokens == parts
    assert how.tokens > 20 and how.bytes > 0


@pytest.mark.parametrize("sink", [0, 3, 10**6])
def test_a_sink_is_computed_by_the_receiver(models: Models, sink: int) -> None:
    """The first tokens are recomputed; with all of them nothing approximate is left."""
    sharer, receiver = models["one"], models["two"]
    message = message_of(sharer, WORDS)
    context = context_of(receiver, message, "who?")
    channel = ProjectedCacheChannel(FakeBridge(sharer, receiver), sink=sink)
    outcome = take_over(receiver, context, (message, channel))
    how = report(outcome)
    assert how.repaired == min(sink, how.tokens) == outcome.usage.recomputed_tokens
    assert how.exact == (sink >= how.tokens)
    assert outcome.state is not None and outcome.state.exact == how.exact


def test_native_layers_are_counted(models: Models) -> None:
    """What the bridge runs in the receiver stands in the finer measure, layers times tokens."""
    sharer, receiver = models["one"], models["two"]
    message = message_of(sharer, WORDS)
    context = context_of(receiver, message, "who?")
    outcomes = [
        take_over(
            receiver,
            context,
            (message, ProjectedCacheChannel(FakeBridge(sharer, receiver, 0.9, n))),
        )
        for n in (0, 2)
    ]
    plain, native = outcomes
    (text,) = context.texts(message)
    more = native.usage.layer_tokens_computed - plain.usage.layer_tokens_computed
    assert more == report(native).layer_tokens == 2 * (text.stop)
    assert replace(native.usage, layer_tokens_computed=0, ttft_s=0, seconds=0) == replace(
        plain.usage, layer_tokens_computed=0, ttft_s=0, seconds=0
    )


def test_every_token_takes_the_sharer_s_token_of_its_text(models: Models) -> None:
    """The rows asked for are those whose text reaches as far, at the sharer's own positions."""
    sharer, receiver = models["one"], models["two"]
    message = message_of(sharer, WORDS, before="something else")
    context = context_of(receiver, "a few words", message, "who?")
    bridge = FakeBridge(sharer, receiver)
    take_over(receiver, context, (message, ProjectedCacheChannel(bridge)))
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
    take_over(receiver, context, (message, ProjectedCacheChannel(bridge)))
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
    carried = take_over(receiver, context, *zip(messages, channels, strict=True))
    same_outcome(carried, take_over(receiver, context))
    reports = report(carried), report(carried, 1)
    assert carried.usage.projected_tokens == sum(carry_report.projected for carry_report in reports)
    assert carried.usage.recomputed_tokens == 8


def test_a_message_behind_a_projected_one_is_not_exact(models: Models) -> None:
    """Repaired whole, a message still has seen what a bridge made before it."""
    sharer, receiver = models["two"], models["one"]
    first, second = message_of(sharer, WORDS), message_of(receiver, f"and {WORDS}", name="other")
    whole = SameModelCacheChannel(sink=10**6)
    projected = ProjectedCacheChannel(FakeBridge(sharer, receiver))
    behind = take_over(receiver, context := context_of(receiver, first, second, "who?"),
                  (first, projected), (second, whole))  # fmt: skip
    assert report(behind, 1).repaired == report(behind, 1).tokens
    assert not report(behind, 1).exact
    before = take_over(receiver, context := context_of(receiver, "now", second, first, "who?"),
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
    message = inbound(0, channel, arrival_of(context, first), fallback=False)
    turn = Turn(context, (message,), (context.ids, state), writes(1))
    (carried,) = take(receiver, turn)[1].carries
    how = carried.report
    assert (how.exact, how.projected, how.repaired, how.reused) == (True, 0, 0, how.tokens)
    assert how.mode == "continuation"


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
    bare = Arrival(message=message, spans=(), context=context_of(models["two"], "other words").ids)
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
    assert caught.value.field == "weights" and models["one"].ref in caught.value.expected
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
    how = report(take_over(receiver, context, (message, channel), fallback=True))
    assert how.fallback is not None and how.fallback.channel == "projected_cache"
    with pytest.raises(RunError, match="brings no state"):
        take_over(receiver, context, (message, channel))


def test_a_negative_sink_is_refused(models: Models) -> None:
    """A number of tokens is 0 or more."""
    with pytest.raises(InputError, match="sink is -1"):
        ProjectedCacheChannel(FakeBridge(models["one"], models["two"]), sink=-1)
