"""A projection in blocks, and weights of bridges from before."""

from typing import Any

import pytest
import torch
from architectures import make
from flows import Pair
from torch.utils._python_dispatch import TorchDispatchMode

from unspoken.channels.bridges import projection
from unspoken.channels.bridges.features import state_of, width
from unspoken.channels.bridges.projection import projected_state
from unspoken.channels.bridges.projector import Projector, ProjectorConfig, without_gates

CONFIG = ProjectorConfig(source_layers=(1, 2), rank=8, hidden=16, bottleneck=4)


def draws(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("gemma3"), make("llama", seed=1)


def test_gates_that_old_bridges_have_go_into_the_residual() -> None:
    receiver = make("llama").geometry
    wide = width(receiver, range(len(receiver.layers)))
    stored = {"gate": draws(1, len(receiver.layers), 0)[0], "spread": draws(4, wide, 1)}
    folded = without_gates(stored, receiver)
    layers = stored["spread"].split([wide // len(receiver.layers)] * len(receiver.layers), dim=1)
    gated = [rows * gate.sigmoid() for rows, gate in zip(layers, stored["gate"], strict=True)]
    assert torch.allclose(folded.pop("spread"), torch.cat(gated, dim=1)) and not folded


def test_gates_that_fit_no_layers_are_left_to_be_refused() -> None:
    stored = {"gate": draws(1, 99, 0)[0], "spread": draws(4, 8, 1)}
    assert without_gates(stored, make("llama").geometry).keys() == stored.keys()


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.nbytes = max(self.nbytes, made.nbytes)
        return made


@pytest.fixture(scope="module")
def mapped(pair: Pair) -> Projector:
    """A projector of random weights."""
    torch.manual_seed(0)
    projector = Projector(CONFIG, pair[0].geometry, pair[1].geometry).requires_grad_(False)
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return projector


@pytest.mark.parametrize("tokens", [0, 1, 7, 8, 9, 20])
def test_blocks_give_what_one_piece_gives(
    pair: Pair, mapped: Projector, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    monkeypatch.setattr(projection, "BLOCK", 8)
    receiver, features = pair[1], draws(tokens, len(mapped.mean), 3)
    state = projected_state(mapped, features, (), 5, receiver)
    layers = range(len(receiver.geometry.layers))
    whole = state_of(mapped(features), layers, 5, receiver)
    assert (state.start, state.stop) == (whole.start, whole.stop) == (5, 5 + tokens)
    for mine, true in zip(state.layers, whole.layers, strict=True):
        assert torch.allclose(mine.keys, true.keys, atol=1e-5)
        assert torch.allclose(mine.values, true.values, atol=1e-5)


def test_no_more_than_a_block_is_held_beside_the_state(
    pair: Pair, mapped: Projector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "BLOCK", 8)
    receiver, tokens = pair[1], 64
    features = draws(tokens, len(mapped.mean), 3)
    with Largest() as largest:
        state = projected_state(mapped, features, (), 0, receiver)
    widest = max(len(mapped.mean), len(mapped.offset))
    layer = max(layer.keys.nbytes for layer in state.layers)
    assert largest.nbytes <= max(8 * widest * 4, layer, mapped.encode.nbytes)
    assert largest.nbytes < tokens * len(mapped.offset) * 4
