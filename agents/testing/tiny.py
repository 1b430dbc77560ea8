"""Tiny random models, made in memory: real states and real channels in seconds."""

from typing import Any, Literal

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from unspoken.agents.models.model import LocalModel
from unspoken.agents.testing.tokenizer import tiny_tokenizer

Family = Literal["llama", "gemma3"]

_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,  # wide enough for logits to be told apart
}
_LLAMA: dict[str, Any] = {
    **_SHAPE,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_GEMMA3: dict[str, Any] = {
    **_SHAPE,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "layer_types": [_SLIDING, _SLIDING, _FULL, _SLIDING],
}


def tiny_model(
    seed: int = 0,
    *,
    family: Family = "llama",
    tokenizer: PreTrainedTokenizerFast | None = None,
    **config: Any,
) -> LocalModel:
    """A random model on the CPU, in float32; what it writes is noise, the same for one seed.

    Args:
        seed: Of its weights; another seed gives a fine-tune of the same base, as identities go.
        family: ``llama`` (2 layers, 2 KV heads of 8) or ``gemma3`` (4 layers, of which three see
            the last 8 positions only; one KV head of 16).
        tokenizer: Its tokenizer; `tiny_tokenizer` by default.
        config: Settings of the family's configuration to change.
    """
    tokenizer = tokenizer or tiny_tokenizer()
    return LocalModel(tiny_weights(tokenizer, seed, family=family, **config), tokenizer)


def tiny_weights(
    tokenizer: PreTrainedTokenizerFast, seed: int = 0, *, family: Family = "llama", **config: Any
) -> PreTrainedModel:
    """The transformers model of a `tiny_model`, in the dtype of its configuration."""
    ids: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any
        if family == "gemma3":
            model = Gemma3ForCausalLM(Gemma3TextConfig(**(_GEMMA3 | ids | config)))
        else:
            model = LlamaForCausalLM(LlamaConfig(**(_LLAMA | ids | config)))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    made: PreTrainedModel = model.to(dtype=model.config.dtype or torch.float32)
    return made
