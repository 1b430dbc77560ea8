"""Tiny random models, made in memory: real states and real channels in seconds."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from unspoken.agents.models.model import LocalModel
from unspoken.agents.testing.tokenizer import tiny_tokenizer

Family = Literal["llama", "gemma3", "qwen3_next", "deepseek_v3"]

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
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_QWEN3_NEXT: dict[str, Any] = {
    **_SHAPE,
    **_EXPERTS,
    "num_hidden_layers": 4,  # three recurrent, one with full attention
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "shared_expert_intermediate_size": 16,
}
_DEEPSEEK_V3: dict[str, Any] = {
    **_SHAPE,
    **_EXPERTS,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_FAMILIES: Mapping[Family, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _LLAMA),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _GEMMA3),
    "qwen3_next": ("Qwen3NextForCausalLM", "Qwen3NextConfig", _QWEN3_NEXT),
    "deepseek_v3": ("DeepseekV3ForCausalLM", "DeepseekV3Config", _DEEPSEEK_V3),
}
"""By family its classes in transformers, and its shape."""


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
        family: ``llama`` (2 layers, 2 KV heads of 8), ``gemma3`` (4 layers, of which three see the
            last 8 positions only; one KV head of 16), ``qwen3_next`` (4 layers, of which three are
            recurrent) or ``deepseek_v3`` (4 layers of latent rows).
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
        made_by, configured_by, shape = _FAMILIES[family]
        made = getattr(transformers, configured_by)(**(shape | ids | config))
        model: Any = getattr(transformers, made_by)(made)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    cast: PreTrainedModel = model.to(dtype=model.config.dtype or torch.float32)
    return cast
