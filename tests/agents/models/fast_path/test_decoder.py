"""Layers computed with few operations: the same values, and never of a model that was changed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import make
from rows import TOLERANCE, Row, apart, ids_of, step
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unspoken.agents.models.fast_path.decoder import FastPath
from unspoken.agents.models.model import LocalModel

COMMON = ("llama", "mistral, window", "qwen2", "qwen3", "gemma3")


def _path(model: LocalModel) -> FastPath:
    assert isinstance(model.fast_path, FastPath)
    return model.fast_path


class _Operations(TorchDispatchMode):
    """Counts torch's operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _counted(row: Row) -> int:
    with _Operations() as operations:
        step([row])
    return operations.count


@pytest.mark.parametrize("kind", COMMON)
def test_a_row_is_computed_with_fewer_operations(kind: str) -> None:
    """The row's tokens, and with the path taken away those of transformers' own layers."""
    model = make(kind)
    assert _path(model).is_as_before
    row = Row(model, ids_of(0, 20))
    for _ in range(2):
        step([row])
    fast = _counted(row)
    model.__dict__["fast_path"] = "taken away"
    assert _counted(row) > 1.3 * fast
    assert apart(row) < TOLERANCE


def test_inputs_of_layers_are_those_of_transformers() -> None:
    """What a receiver's bridge or a fine-tune is given of a layer."""
    model = make("qwen3")
    ids = ids_of(1, 12)
    with torch.no_grad():
        expected = model.hf(torch.tensor([ids]), output_hidden_states=True).hidden_states
    assert _path(model).is_as_before
    row = Row(model, ids)
    row.hidden = {0: [], 1: []}
    step([row])
    for layer, (part,) in row.hidden.items():
        assert (part - expected[layer][0]).abs().max() < TOLERANCE


def _hooked(module: nn.Module) -> None:
    module.register_forward_hook(lambda module, args, output: 2 * output)


def _scaled(module: nn.Module) -> None:
    with torch.no_grad():
        next(module.parameters()).mul_(1.5)


def _replaced(module: nn.Module) -> None:
    module.forward = lambda values: 3 * values  # type: ignore[method-assign]


def _another_activation(module: nn.Module) -> None:
    module.mlp.act_fn = nn.ReLU()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("", _another_activation),
        ("mlp.act_fn", _hooked),
        ("mlp.act_fn", _replaced),
        ("post_attention_layernorm", _scaled),
        ("mlp.down_proj", _scaled),
        ("self_attn.o_proj", _hooked),
    ],
)
def test_a_change_of_the_model_is_not_missed(
    part: str, change: Callable[[nn.Module], None]
) -> None:
    """A program hooks, trains or replaces a part after a turn has begun."""
    model = make("llama")
    row = Row(model, ids_of(2, 9))
    assert _path(model).is_as_before
    change(model.backbone.layers[1].get_submodule(part))
    for _ in range(3):
        step([row])
    assert apart(row) < TOLERANCE


def test_a_hook_of_the_whole_decoder_is_not_missed() -> None:
    """What a program hooks on the decoder counts for rows of a turn under way."""
    model = make("llama")
    row = Row(model, ids_of(2, 9))
    assert _path(model).is_as_before

    def doubled(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = 2 * output.last_hidden_state
        return output

    model.backbone.base.register_forward_hook(doubled)
    for _ in range(3):
        step([row])
    assert apart(row) < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "why"), [("gemma2", "its attention is Gemma2Attention"), ("gpt2", "embed_tokens")]
)
def test_other_layers_are_computed_by_transformers(kind: str, why: str) -> None:
    """A model says why its layers are not of the common kind."""
    assert why in str(make(kind).fast_path)


def test_other_types_are_computed_by_transformers() -> None:
    """In bfloat16 the order of roundings counts."""
    model = make("llama")
    half = LocalModel(model.hf.bfloat16(), model.tokenizer, ref="half")  # type: ignore[attr-defined]
    assert half.fast_path == "it does not compute in float32"
