"""Each layer of a model is proved before its keys are moved."""

import pytest
import torch
from architectures import ARCHITECTURES, UNMOVABLE, make
from flows import DOCUMENT, QUESTION, reader_solver
from torch import Tensor, nn

from unspoken.agents.models.model import LocalModel
from unspoken.agents.models.proofs.positions import prove_positions
from unspoken.channels.kv.rope import Rotary

NEAR, FAR = 5, 35


def moved_and_computed(model: LocalModel) -> list[tuple[Tensor, Tensor]]:
    """Per layer the key of a token that was moved, and of the same token computed there.

    Of one token again and again all hidden states are equal, so keys differ by position alone.
    """
    state = model.prefill(torch.full((60,), 70)).state
    moved = state.slice(NEAR, NEAR + 1).shift(FAR - NEAR, model.geometry, model.rotary)
    there = state.slice(FAR, FAR + 1)
    return [(a.keys, b.keys) for a, b in zip(moved.layers, there.layers, strict=True)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_moved_keys_are_those_of_the_new_place(name: str) -> None:
    """In every layer, rotated or not."""
    model = make(name)
    assert model.shifts_keys
    for moved, computed in moved_and_computed(model):
        torch.testing.assert_close(moved, computed, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_coarser_floats_are_proved_alike(name: str, dtype: torch.dtype) -> None:
    """Rounding is not taken for another rotation, nor hides one."""
    model = make(name)
    assert model.cast(dtype).key_positions == model.key_positions


def test_layers_without_rotation_have_no_rope_in_the_geometry() -> None:
    """A full-attention layer of EXAONE 4, and every n-th of SmolLM3."""
    exaone = make("exaone4, no rotation in full attention")
    assert [layer.rope for layer in exaone.geometry.layers] == ["default", None] * 2
    smol = make("smollm3, no rotation in layer 2")
    assert smol.key_positions == ("rotated", "rotated", "bare", "rotated")


@pytest.mark.parametrize("name", UNMOVABLE)
def test_another_rotation_is_found_out_and_goes_by_text(name: str) -> None:
    """A splice of such keys is never made; the plan says why."""
    model = make(name)
    assert not model.shifts_keys and "other" in model.key_positions
    flow = reader_solver(model, model, "auto", system="the key of the reader")
    (edge,) = flow.plan(document=DOCUMENT, question=QUESTION).edges
    assert edge.channel == "text" and "keys cannot be moved" in edge.reason


def test_one_odd_layer_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single deep layer that rotates otherwise makes the model one whose keys stay in place."""
    model = make("llama")
    attention = model.hf.model.layers[2].self_attn

    def doubled(module: nn.Module, args: object, kwargs: dict[str, object]) -> object:
        cos, sin = kwargs["position_embeddings"]  # type: ignore[misc]
        turned = (cos * cos - sin * sin, 2 * sin * cos)
        return args, {**kwargs, "position_embeddings": turned}

    attention.register_forward_pre_hook(doubled, with_kwargs=True)
    assert prove_positions(model.backbone) == ("rotated", "rotated", "other", "rotated")


def test_positions_in_the_embeddings_are_found_out() -> None:
    """Keys whose tokens know their places before the first layer cannot be moved."""
    model = make("llama")

    def first(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> object:
        return (args[0] + 0.01 * kwargs["position_ids"][0, :, None].float(), *args[1:]), kwargs

    model.hf.model.layers[0].register_forward_pre_hook(first, with_kwargs=True)
    assert set(prove_positions(model.backbone)) == {"other"}


def test_frequencies_that_change_with_the_length_are_not_moved() -> None:
    """They are another rotation in a longer context."""
    model = make("llama, yarn")

    def dynamic(name: str) -> Rotary:
        plain = type(model.backbone).rotary(model.backbone, name)
        return Rotary(plain.inverse_frequencies, plain.scale, dynamic=True)

    model.backbone.rotary = dynamic  # type: ignore[method-assign]
    assert set(prove_positions(model.backbone)) == {"other"}
