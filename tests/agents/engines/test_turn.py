"""One turn on one model: states in place, tokens counted, the turn closed."""

from typing import Any

import pytest
import torch
from messages import arrival_of, context_of, message_of
from tiny import CHATML
from turns import Turn, inbound, take, writes

from unspoken.agents import LocalModel
from unspoken.agents.engines.base import Inbound, Prefilling
from unspoken.agents.prompts.context import ChatTurn, Context
from unspoken.agents.testing import tiny_model, tiny_tokenizer
from unspoken.channels import KVState, Message, SameModelCacheChannel, TextChannel
from unspoken.channels.errors import ContextLengthError, RunError


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


WORDS = "the reader was in the document with the key " * 3


def close_to(left: KVState, right: KVState) -> None:
    assert (left.start, left.stop) == (right.start, right.stop)
    for one, other in zip(left.layers, right.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(one.values, other.values, atol=1e-4, rtol=1e-4)


def computed(model: LocalModel, ids: tuple[int, ...]) -> KVState:
    return model.prefill(model.tensor(ids)).state


def delivered(
    model: LocalModel, message: Message, channel: Any, before: str = "", fallback: bool = True
) -> tuple[Context, tuple[Inbound, ...]]:
    """A context of some words, a message and a question, and the message's delivery."""
    context = context_of(model, *([before] if before else []), message, "who?")
    return context, (inbound(0, channel, arrival_of(context, message), fallback),)


@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_stop_string_leaves_a_state_of_the_kept_words(model: LocalModel, at: int) -> None:
    """After a stop string the state is that of the words before it, wherever in a token it fell."""
    context = context_of(model, WORDS)
    full = take(model, Turn(context, generate=writes(16)))[1].text
    stop = full[at : at + 2]
    request = Turn(context, generate=writes(16, stop=stop), keep_state=True)
    outcome = take(model, request)[1]
    assert outcome.text == full.split(stop, 1)[0] and outcome.finish == "stop"
    assert model.text.decode(outcome.context.segments[-1].words) == outcome.text
    assert outcome.state is not None
    close_to(outcome.state, computed(model, outcome.context.ids))


def test_a_long_prefill_comes_in_steps_of_256(model: LocalModel) -> None:
    """Between chunks there is an event, so that a cancel is seen."""
    context = context_of(model, "漢" * 250)
    events, _ = take(model, Turn(context, generate=writes(1)))
    total = len(context.ids + model.context_builder.ask())
    assert total > 512
    assert [one for one in events if isinstance(one, Prefilling)] == [
        Prefilling(done, total) for done in range(0, total, 256)
    ]


def test_a_reader_computes_its_context_and_writes_nothing(model: LocalModel) -> None:
    """Without generation there is no generation prompt, no token, and one state."""
    context = context_of(model, WORDS)
    outcome = take(model, Turn(context, keep_state=True))[1]
    assert outcome.context.ids == context.ids
    assert (outcome.text, outcome.finish, outcome.usage.ttft_s) == ("", "none", None)
    assert outcome.usage.generated_tokens == 0
    assert outcome.state is not None and outcome.state.stop == len(context.ids)


def test_a_length_limit_is_told(model: LocalModel) -> None:
    """A turn that used all its tokens ended by length and counts them."""
    outcome = take(model, Turn(context_of(model, WORDS), generate=writes(2)))[1]
    assert (outcome.finish, outcome.usage.generated_tokens) == ("length", 2)


def test_no_state_is_kept_that_nobody_wants(model: LocalModel) -> None:
    """Without a reader to come there is no state."""
    outcome = take(model, Turn(context_of(model, WORDS), generate=writes(2)))[1]
    assert outcome.state is None


def test_own_state_is_reused_as_far_as_the_ids_agree(model: LocalModel) -> None:
    """An agent's earlier context is not computed again, and it writes the same."""
    first = take(model, Turn(context_of(model, WORDS), generate=writes(), keep_state=True))[1]
    context = model.context_builder.compose(
        [ChatTurn("user", ("and then?",))], earlier=first.context
    )
    assert first.state is not None
    again = Turn(context, history=(first.context.ids, first.state), generate=writes())
    plain = Turn(context, generate=writes())
    reused, anew = take(model, again)[1], take(model, plain)[1]
    assert reused.text == anew.text
    assert reused.usage.reused_tokens == len(first.context.ids)
    assert anew.usage.reused_tokens == 0


@pytest.mark.parametrize("before", ["", "some words first"])
@pytest.mark.parametrize("sink", [0, 4, 10**6])
def test_tokens_are_counted_once(model: LocalModel, before: str, sink: int) -> None:
    """Prefilled, reused and recomputed add up, whether the message continues or is spliced."""
    message = message_of(model, WORDS)
    context, deliveries = delivered(model, message, SameModelCacheChannel(sink=sink), before)
    usage = take(model, Turn(context, deliveries, generate=writes(2)))[1].usage
    total = usage.prefilled_tokens + usage.reused_tokens + usage.recomputed_tokens
    assert usage.prompt_tokens == total == len(context.ids + model.context_builder.ask())
    size = len(message.segments[0].ids)
    assert usage.recomputed_tokens == (min(sink, size) if before else 0)
    assert usage.layer_tokens_computed == 2 * (usage.prefilled_tokens + usage.recomputed_tokens)


@pytest.mark.parametrize(("before", "sink"), [("", 4), ("some words first", 10**6)])
def test_an_exact_carry_leaves_the_state_that_text_leaves(
    model: LocalModel, before: str, sink: int
) -> None:
    """A continuation, and a splice repaired whole, end in the same keys, values and words."""
    message = message_of(model, WORDS)
    outcomes = []
    for channel in (TextChannel(), SameModelCacheChannel(sink=sink)):
        context, deliveries = delivered(model, message, channel, before)
        request = Turn(context, deliveries, generate=writes(), keep_state=True)
        outcomes.append(take(model, request)[1])
    words, state = outcomes
    assert words.text == state.text and words.context.ids == state.context.ids
    assert words.state is not None and state.state is not None
    close_to(state.state, words.state)


def test_a_splice_without_repair_is_another_state(model: LocalModel) -> None:
    """Left as it is, a spliced message differs: the comparison above can fail."""
    message = message_of(model, WORDS)
    context, deliveries = delivered(model, message, SameModelCacheChannel(sink=0), "words first")
    outcome = take(model, Turn(context, deliveries, keep_state=True))[1]
    assert outcome.state is not None and not outcome.carries[0].report.exact
    with pytest.raises(AssertionError):
        close_to(outcome.state, computed(model, context.ids))


def test_a_sharer_s_state_is_not_changed_by_its_reader(model: LocalModel) -> None:
    """Splicing and repairing leave the message's own tensors as they were."""
    message = message_of(model, WORDS)
    assert message.state is not None
    before = [layer.keys.clone() for layer in message.state.layers]
    context, deliveries = delivered(model, message, SameModelCacheChannel(), "words first")
    take(model, Turn(context, deliveries, generate=writes(), keep_state=True))
    for layer, keys in zip(message.state.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)


def test_keys_that_cannot_be_moved_are_not_spliced(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of another rotation falls back to text rather than use wrong keys, and says so."""
    monkeypatch.setattr(LocalModel, "shifts_keys", property(lambda self: False))
    message = message_of(model, WORDS)
    context, deliveries = delivered(model, message, SameModelCacheChannel(), "words first")
    (carried,) = take(model, Turn(context, deliveries, generate=writes(1)))[1].carries
    report = carried.report
    assert report.channel == "text" and report.fallback is not None
    context, deliveries = delivered(model, message, SameModelCacheChannel())
    (carried,) = take(model, Turn(context, deliveries, generate=writes(1)))[1].carries
    report = carried.report
    assert report.channel == "same_model_cache" and report.exact


def test_a_message_without_state_is_read_or_refused(model: LocalModel) -> None:
    """A cache channel whose message brings no state falls back, or names its edge."""
    full = message_of(model, WORDS)
    bare = Message(
        sharer=full.sharer,
        segments=full.segments,
        whole=full.whole,
        context=full.context,
        identity=full.identity,
    )
    context, deliveries = delivered(model, bare, SameModelCacheChannel())
    (carried,) = take(model, Turn(context, deliveries, generate=writes(1)))[1].carries
    report = carried.report
    assert report.fallback is not None and report.fallback.channel == "same_model_cache"
    context, deliveries = delivered(model, bare, SameModelCacheChannel(), fallback=False)
    with pytest.raises(RunError, match="brings no state") as caught:
        take(model, Turn(context, deliveries, generate=writes(1)))
    assert caught.value.edge == "reader -> solver"


def test_a_context_past_the_model_s_is_refused_at_once(model: LocalModel) -> None:
    """Nothing is computed for a context that the model cannot hold."""
    with pytest.raises(ContextLengthError, match="tokens"):
        take(model, Turn(context_of(model, "漢" * 1000), generate=writes()))


def test_a_turn_stops_at_the_end_of_the_model_s_context(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding ends by length where positions run out."""
    monkeypatch.setitem(vars(model), "stop_ids", frozenset())
    context = context_of(model, "漢" * 677)
    room = model.max_positions - len(context.ids + model.context_builder.ask())
    assert 0 < room < 40
    outcome = take(model, Turn(context, generate=writes(200)))[1]
    assert (outcome.finish, outcome.usage.generated_tokens) == ("length", room)


def test_a_marker_that_is_sampled_has_no_place_in_the_state(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A marker in the middle of an answer is not in the context, and its state is not used."""
    context, mark = context_of(model, WORDS), model.text.encode("<|im_start|>")[0]
    sampled = iter([*model.text.encode_words("the reader"), mark, *model.text.encode_words(" key")])

    class Written:
        takes_likeliest = False

        def __init__(self, *_: object) -> None: ...

        def __call__(self, logits: torch.Tensor) -> torch.Tensor:
            return torch.tensor([next(sampled, model.tokenizer.eos_token_id)])

    monkeypatch.setattr("unspoken.agents.engines.turn.Sampler", Written)
    outcome = take(model, Turn(context, generate=writes(16), keep_state=True))[1]
    answer = outcome.context.segments[-1]
    assert outcome.text == "the reader key" == model.text.decode(answer.words)
    assert mark not in answer.words and outcome.state is not None
    close_to(outcome.state, computed(model, outcome.context.ids))


def test_a_marker_that_is_not_special_ends_a_turn() -> None:
    """What the template writes behind an answer is where a model ends it."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|end|>"])
    tokenizer.chat_template = CHATML.replace("<|im_end|>", "<|end|>")
    assert tokenizer.convert_tokens_to_ids("<|end|>") in tiny_model(tokenizer=tokenizer).stop_ids
