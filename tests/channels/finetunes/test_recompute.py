"""Recomputing ranges of layers, against transformers' own layers."""

import math
from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, make, tuned

from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import IdentityMismatch, InputError, StateError
from unspoken.channels.finetunes.recompute import check_layer_ranges, entry_layers, recompute_layers
from unspoken.channels.kv.state import KVState

IDS = tuple(range(3, 33))
NEXT = (40, 41, 42, 43)


def sent(sharer: LocalModel, layers: range | None = None) -> KVState:
    """The sharer's state with its hidden states at the inputs of some layers, all by default."""
    wanted = range(len(sharer.geometry.layers)) if layers is None else layers
    prefill = sharer.prefill(sharer.tensor(IDS), capture=wanted)
    return replace(prefill.state, hidden=dict(prefill.hidden))


def after(model: LocalModel, state: KVState) -> torch.Tensor:
    return model.logits(model.tensor(NEXT), [state]).log_softmax(dim=-1)


def kl(full: torch.Tensor, other: torch.Tensor) -> float:
    return float((full.exp() * (full - other)).sum(dim=-1).mean())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_layers_recomputed_are_the_receivers_own_prefill(name: str) -> None:
    sharer, receiver = make(name), tuned(name)
    count = len(receiver.geometry.layers)
    mixed = recompute_layers(receiver, sent(sharer), IDS, ((0, count),))
    exact = receiver.read(IDS)
    for mine, theirs in zip(mixed.layers, exact.layers, strict=True):
        torch.testing.assert_close(mine.keys, theirs.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mine.values, theirs.values, atol=1e-4, rtol=1e-4)
    assert mixed.exact and mixed.identity == receiver.identity
    torch.testing.assert_close(after(receiver, mixed), after(receiver, exact), atol=1e-4, rtol=1e-4)


def test_no_group_leaves_the_sharers_state() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    state = sent(sharer)
    mixed = recompute_layers(receiver, state, IDS, ())
    assert all(mine is theirs for mine, theirs in zip(mixed.layers, state.layers, strict=True))
    assert not mixed.exact and mixed.identity == receiver.identity


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3"])
def test_a_group_is_what_the_receivers_layers_make_of_the_sharers_hidden_states(name: str) -> None:
    """Keys and values of the range by transformers' own modules; other layers stay."""
    sharer, receiver = make(name), tuned(name)
    state = sent(sharer)
    mixed = recompute_layers(receiver, state, IDS, ((2, 3),))
    layer = receiver.backbone.layers[2]
    with torch.no_grad():
        normed = layer.input_layernorm(state.hidden[2][None])
        values = layer.self_attn.v_proj(normed)[0]
    heads = mixed.layers[2].values
    torch.testing.assert_close(heads.transpose(0, 1).flatten(1), values, atol=1e-5, rtol=1e-5)
    assert mixed.layers[1] is state.layers[1] and mixed.layers[3] is state.layers[3]


def test_more_layers_recomputed_come_nearer_to_the_receivers_own() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    full = after(receiver, receiver.read(IDS))
    state = sent(sharer)
    count = len(receiver.geometry.layers)
    distances = [
        kl(full, after(receiver, recompute_layers(receiver, state, IDS, layer_ranges)))
        for layer_ranges in ((), ((0, 2),), ((0, count - 1),), ((0, count),))
    ]
    assert distances[0] > distances[1] > distances[2] > distances[3]
    assert distances[0] > 0.01 and math.isclose(distances[3], 0, abs_tol=1e-6)


def test_behind_other_tokens_all_recomputed_is_exact() -> None:
    """At a position that is not the first, keys moved, the receiver's own state before it."""
    sharer, receiver = make("llama"), tuned("llama")
    before = receiver.read((50, 51, 52))
    moved = sent(sharer).shift(3, receiver.geometry, receiver.rotary)
    count = len(receiver.geometry.layers)
    mixed = recompute_layers(receiver, moved, IDS, ((0, count),), [before])
    exact = receiver.read((50, 51, 52, *IDS))
    for mine, theirs in zip(mixed.layers, exact.layers, strict=True):
        torch.testing.assert_close(mine.keys, theirs.keys[:, 3:], atol=1e-4, rtol=1e-4)


def test_neighbouring_groups_are_one() -> None:
    assert check_layer_ranges([[0, 2], [2, 3], [5, 6]], 8) == ((0, 3), (5, 6))
    assert entry_layers(((0, 3), (5, 6))) == (5,)


@pytest.mark.parametrize("layer_ranges", [[[2, 2]], [[-1, 1]], [[0, 9]], [[2, 4], [3, 5]], [[1]]])
def test_groups_that_make_no_sense_are_refused(layer_ranges: list[list[int]]) -> None:
    with pytest.raises(InputError, match="range of layers"):
        check_layer_ranges(layer_ranges, 8)


def test_a_missing_hidden_state_names_its_layer() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    with pytest.raises(StateError, match="input of layer 2"):
        recompute_layers(receiver, sent(sharer, range(1)), IDS, ((2, 3),))


def test_another_architecture_is_refused() -> None:
    with pytest.raises(IdentityMismatch, match="config"):
        recompute_layers(make("qwen2"), sent(make("llama")), IDS, ())


def test_hidden_states_that_begin_too_late_are_said_to() -> None:
    sharer, receiver = make("llama"), tuned("llama")
    state = sent(sharer)
    late = replace(state, hidden={layer: rows[5:] for layer, rows in state.hidden.items()})
    with pytest.raises(StateError, match="begin at position 5"):
        recompute_layers(receiver, late, IDS, ((2, 3),))
    part = recompute_layers(receiver, late.slice(5, late.stop), IDS[5:], (), [])
    assert part.start == 5
