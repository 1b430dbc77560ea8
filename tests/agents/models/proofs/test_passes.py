"""A window counts where a model's code applies it, wherever that code is."""

from typing import Any

import torch
from tiny import tiny_tokenizer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    PreTrainedModel,
)

from unspoken.agents.models.model import LocalModel
from unspoken.agents.models.proofs.passes import refuses_states

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


class OwnModel(MistralModel):
    """A decoder of somebody's own, all of whose code is in another module."""


class OwnForCausalLM(MistralForCausalLM):
    """The same with a head."""

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config)
        self.model = OwnModel(config)
        self.post_init()


def loaded(made: type[PreTrainedModel], config: Any) -> LocalModel:
    torch.manual_seed(0)
    return LocalModel(made(config), tiny_tokenizer(), ref="own")


def test_a_derived_class_applies_the_window_of_its_parent() -> None:
    """A class in a module without the code for windows is not refused for that."""
    config = MistralConfig(**SHAPE, vocab_size=len(tiny_tokenizer()), sliding_window=4)
    model = loaded(OwnForCausalLM, config)
    assert {layer.window for layer in model.geometry.layers} == {4}
    assert refuses_states(model.backbone) is None


def test_a_window_that_no_code_applies_is_refused() -> None:
    """Llama's code sees all, whatever its configuration says."""
    config = LlamaConfig(**SHAPE, vocab_size=len(tiny_tokenizer()))
    config.sliding_window = 4
    refused = refuses_states(loaded(LlamaForCausalLM, config).backbone)
    assert refused is not None and "does not apply" in refused
