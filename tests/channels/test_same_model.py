"""The same-model channel against a full recompute."""

import math
from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, make
from messages import message_of, receive

from unspoken.agents.engines.turn import Assembly
from unspoken.agents.models.model import LocalModel
from unspoken.channels.base import Arrival, CarryReport
from unspoken.channels.errors import (
    GeometryMismatch,
    IdentityMismatch,
    InputError,
    RunError,
    StateError,
)
from unspoken.channels.message import Message, common_prefix
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

DOCUMENT = "the key of this document is that which the reader was asked for, and the value is in it"


WORDS = DOCUMENT + " for the solver to find.\nWho was it?"


def logits_of(model: LocalModel, ids: tuple[int, ...], parts: Assembly) -> torch.Tensor:
    """Last logits of the context over the states in place."""
    new = model.tensor([ids[position] for position in parts.missing])
    return model.prefill(new, parts.states, model.tensor(parts.missing)).logits


def full_logits(model: LocalModel, ids: tuple[int, ...]) -> torch.Tensor:
    """Last logits by transformers alone."""
    with torch.no_grad():
        return model.hf(model.tensor(ids)[None]).logits[0, -1]


def report(parts: Assembly, number: int = 0) -> CarryReport:
    return parts.carries[number].report


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_continuation_is_exact(name: str) -> None:
    """Behind the same tokens the receiver computes its own tokens only, and exactly."""
    model = make(name)
    message = message_of(model, WORDS)
    ids, parts = receive(model, message)
    assert parts.missing == tuple(range(len(message.context), len(ids)))
    assert report(parts).exact
    torch.testing.assert_close(
        logits_of(model, ids, parts), full_logits(model, ids), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_splice_with_all_recomputed_is_exact(name: str) -> None:
    """Repairing every token of a spliced message is the receiver's own prefill."""
    model = make(name)
    ids, parts = receive(
        model,
        message_of(model, WORDS, system="one of the keys"),
        channel=SameModelCacheChannel(sink=10**6),
    )
    assert report(parts).exact
    torch.testing.assert_close(
        logits_of(model, ids, parts), full_logits(model, ids), atol=1e-4, rtol=1e-4
    )


def test_a_splice_computes_the_sink_and_its_own_tokens_only() -> None:
    """What is left to compute of a spliced message is its first tokens."""
    model = make("llama")
    message = message_of(model, WORDS, system="one of the keys")
    ids, parts = receive(model, message)
    start = common_prefix(ids, message.context)
    stop = len(model.context_builder.opening(None).ids) + len(message.segments[0].ids)
    assert parts.missing == (*range(start, start + 4), *range(stop, len(ids)))
    assert parts.repaired == frozenset(range(start, start + 4))
    assert (report(parts).exact, report(parts).repaired) == (False, 4)


def test_a_continuation_of_a_splice_is_not_called_exact() -> None:
    """A context built over a spliced message stays approximate for its readers."""
    model = make("llama")
    ids, parts = receive(model, message_of(model, WORDS, system="one of the keys"))
    new = model.tensor([ids[position] for position in parts.missing])
    state = model.prefill(new, parts.states, model.tensor(parts.missing)).state
    segment = message_of(model, WORDS).segments[0]
    again, later = receive(
        model,
        Message(
            sharer="solver",
            segments=(segment,),
            whole=False,
            context=ids,
            identity=model.identity,
            state=state,
        ),
    )
    assert len(later.missing) < len(again) // 2
    assert (report(later).mode, report(later).exact) == ("continuation", False)


def test_spliced_keys_stand_at_the_receivers_positions() -> None:
    """Layer 0's keys of a spliced message are exact, since they see no other token."""
    model = make("llama")
    ids, parts = receive(
        model,
        message_of(model, WORDS, system="one of the keys"),
        channel=SameModelCacheChannel(sink=0),
    )
    full = model.prefill(model.tensor(ids)).state.layers[0]
    piece = parts.states[-1]
    torch.testing.assert_close(
        piece.layers[0].keys, full.keys[:, piece.start : piece.stop], atol=1e-4, rtol=1e-4
    )


def test_the_second_of_two_messages_is_spliced() -> None:
    """Two readers of one model: the first continues, the second comes after other tokens."""
    model = make("llama")
    _, parts = receive(model, message_of(model, WORDS), message_of(model, DOCUMENT[::-1]))
    assert [report(parts, n).exact for n in (0, 1)] == [True, False]
    assert report(parts, 1).mode == "splice"
    assert len(parts.missing) < 40


def test_a_state_of_changed_weights_is_refused_with_the_field() -> None:
    """One changed weight makes a cache unusable, and the error says it was the weights."""
    model, other = make("llama"), make("llama")
    with torch.no_grad():
        next(other.hf.parameters())[0, 0] += 1
    changed = LocalModel(other.hf, other.tokenizer)
    with pytest.raises(IdentityMismatch) as caught:
        SameModelCacheChannel().check(changed, model)
    assert caught.value.field == "weights"
    with pytest.raises(RunError, match="other weights") as refused:
        receive(model, message_of(changed, WORDS))
    assert refused.value.edge == "reader -> solver"


def test_models_of_two_dtypes_are_refused() -> None:
    """A cache in another dtype is refused when the edge is checked."""
    model = make("llama")
    half = LocalModel(make("llama").hf.to(torch.bfloat16), model.tokenizer, identity=model.identity)
    with pytest.raises(GeometryMismatch, match="bfloat16"):
        SameModelCacheChannel().check(half, model)


def test_a_message_without_state_is_refused() -> None:
    """A cache channel does not pretend to carry what is not there."""
    model = make("llama")
    bare = replace(message_of(model, WORDS), state=None)
    arrival = Arrival(message=bare, spans=(), context=bare.context)
    with pytest.raises(StateError, match="brings no state"):
        SameModelCacheChannel().carry(arrival, model)


def test_text_carries_no_state_and_is_exact() -> None:
    """The reference hands over ids and nothing else."""
    model = make("llama")
    ids, parts = receive(model, message_of(model, WORDS), channel=TextChannel())
    assert not parts.states
    assert parts.missing == tuple(range(len(ids)))
    assert (report(parts).exact, report(parts).bytes) == (True, len(WORDS.encode()))


@pytest.mark.model
def test_a_splice_of_a_real_model_is_close(smollm2: LocalModel) -> None:
    """On SmolLM2 a splice stays within 0.05 nats of a recompute, nearer than without repair."""
    text = (
        "The tide gauge stands at the end of the north pier. It was set up by the harbour board, "
        "and its float "
        "moves a pen over a drum of paper. Every morning the keeper reads the drum, and writes the "
        "height down. "
    ) * 2
    message = message_of(smollm2, text, system="You read reports for the harbour office.")
    distances = []
    for sink in (0, 4):
        ids, parts = receive(
            smollm2, message, system="Answer briefly.", channel=SameModelCacheChannel(sink=sink)
        )
        full = full_logits(smollm2, ids).log_softmax(-1)
        ours = logits_of(smollm2, ids, parts).log_softmax(-1)
        distances.append(float((full.exp() * (full - ours)).sum()))
    assert distances[1] < 0.05
    assert distances[1] <= distances[0]


def plain_values(model: LocalModel, ids: tuple[int, ...], layer: int) -> torch.Tensor:
    """A layer's values by transformers alone, (positions, heads x head size)."""
    with torch.no_grad():
        cache = model.hf(model.tensor(ids)[None], use_cache=True).past_key_values
    return cache.layers[layer].values[0].transpose(0, 1).flatten(1)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt-neox, partial rotary"])
def test_deviation_repairs_the_tokens_whose_values_changed_most(name: str) -> None:
    """The chosen tokens are those whose second layer's values deviate most from a prefill's."""
    model = make(name)
    message = message_of(model, WORDS, system="one of the keys")
    ids, parts = receive(model, message, channel=SameModelCacheChannel(sink=0, deviation=0.2))
    piece = parts.states[-1]
    theirs = piece.layers[1].values.transpose(0, 1).flatten(1)
    exact = plain_values(model, ids, 1)[piece.start : piece.stop]
    count = math.ceil(0.2 * len(piece))
    wanted = (theirs - exact).norm(dim=1).topk(count).indices + piece.start
    assert sorted(parts.repaired) == sorted(wanted.tolist())
    assert report(parts).layer_tokens == 2 * piece.stop


def test_deviation_one_is_the_receivers_own_prefill() -> None:
    """A share of 1 repairs everything."""
    model = make("gemma3")
    ids, parts = receive(
        model,
        message_of(model, WORDS, system="one of the keys"),
        channel=SameModelCacheChannel(sink=0, deviation=1.0),
    )
    assert report(parts).exact
    torch.testing.assert_close(
        logits_of(model, ids, parts), full_logits(model, ids), atol=1e-4, rtol=1e-4
    )


def test_a_continuation_looks_for_no_deviation() -> None:
    """Where nothing is spliced, no layer is run to find what deviates."""
    model = make("llama")
    _, parts = receive(
        model, message_of(model, WORDS), channel=SameModelCacheChannel(deviation=0.5)
    )
    assert (report(parts).repaired, report(parts).layer_tokens) == (0, 0)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    """What is no share of the tokens is no setting."""
    with pytest.raises(InputError, match="deviation is"):
        SameModelCacheChannel(deviation=share)
