"""Trimmed states: what goes on from their end is what goes on from the whole state."""

from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, WINDOW, make
from messages import message_of, receive

from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import StateError
from unspoken.channels.kv.compressed import compress
from unspoken.channels.kv.state import KVState

WORDS = "the key of this document is that which the reader was asked for, and no other key"
SLIDING = [
    "gemma2",
    "gemma3",
    "mistral, window",
    "exaone4, no rotation in full attention",
    "cohere2, neighbours rotated",
]


def logits(model: LocalModel, ids: torch.Tensor, state: KVState) -> torch.Tensor:
    return model.prefill(ids[state.stop :], [state]).logits


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_continuation_of_a_trimmed_message_is_the_same(name: str) -> None:
    """Through the channel, and for every token after it, as far as the window reaches back."""
    model = make(name)
    message = message_of(model, WORDS)
    assert message.state is not None
    trimmed = message.state.trim(model.geometry)
    assert trimmed.continues(model.geometry)
    assert trimmed.whole == (name not in SLIDING)
    ids, parts = receive(model, message)
    _, small = receive(model, replace(message, state=trimmed))
    assert small.missing == parts.missing
    new, positions = (
        model.tensor([ids[position] for position in parts.missing]),
        model.tensor(parts.missing),
    )
    assert len(new) > WINDOW
    whole = model.prefill(new, parts.states, positions)
    small_states = model.prefill(new, small.states, positions)
    assert torch.equal(whole.logits, small_states.logits)
    for left, right in zip(whole.state.layers, small_states.state.layers, strict=True):
        assert torch.equal(left.values[:, -len(new) :], right.values[:, -len(new) :])


@pytest.mark.parametrize("name", SLIDING)
def test_a_state_says_whether_it_can_go_on(name: str) -> None:
    """A whole state at every position; the beginning of a trimmed one does not, and is refused."""
    model = make(name)
    ids = model.tensor(model.text.encode(WORDS))
    state = model.prefill(ids[:-2]).state
    trimmed = state.trim(model.geometry)
    for stop in range(1, state.stop + 1):
        assert state.slice(0, stop).continues(model.geometry)
        beginning = trimmed.slice(0, stop)
        if beginning.continues(model.geometry):
            expected = logits(model, ids, state.slice(0, stop))
            torch.testing.assert_close(logits(model, ids, beginning), expected)
        else:
            with pytest.raises(StateError, match="holds nothing before"):
                logits(model, ids, beginning)
    assert not trimmed.slice(0, state.stop - 1).continues(model.geometry)


def test_trimming_gives_memory_back() -> None:
    """A sliding layer's rows lie in memory of their own; a full layer shares what it had."""
    model = make("gemma3")
    state = model.prefill(model.tensor(model.text.encode(WORDS))).state
    trimmed = state.trim(model.geometry)
    for old, new, shape in zip(state.layers, trimmed.layers, model.geometry.layers, strict=True):
        shared = old.keys.untyped_storage().data_ptr() == new.keys.untyped_storage().data_ptr()
        assert shared == (shape.window is None)
        assert new.rows == (old.rows if shape.window is None else WINDOW - 1)
    assert trimmed.trim(model.geometry).layers == trimmed.layers
    small, large = compress(trimmed, "int8"), compress(state, "int8")
    assert small.nbytes < large.nbytes and small.decompress().continues(model.geometry)
