"""Tiny random models whose layers keep more than rows of keys and values, or other ones."""

from typing import Any

import torch
import transformers
from tiny import tiny_tokenizer

from unspoken.agents.models.model import LocalModel

_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
_MIXED = ["linear_attention", "full_attention"] * 2
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 16,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 8,
}
_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}

_RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-next": (
        "Qwen3Next",
        {**_SHAPE, **_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 16, "num_experts": 4},
    ),
    "qwen3.5": ("Qwen3_5", {**_SHAPE, **_DELTA}),
    "jamba": (
        "Jamba",
        {
            **_SHAPE,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "lfm2": ("Lfm2", {**_SHAPE, "layer_types": ["conv", "full_attention"] * 2}),
    "mamba": (
        "Mamba",
        {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4},
    ),
    "mamba2": (
        "Mamba2",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    "falcon-h1": ("FalconH1", {**_SHAPE, **_MAMBA, "mamba_d_ssm": 64}),
    "granite-4": (
        "GraniteMoeHybrid",
        {
            **_SHAPE,
            **_MAMBA,
            "layer_types": ["mamba", "attention"] * 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 16,
        },
    ),
    "nemotron-h": (
        "NemotronH",
        {
            **_SHAPE,
            "hybrid_override_pattern": "M-M*",
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    "bamba": ("Bamba", {**_SHAPE, **_MAMBA, "attn_layer_indices": [1, 3]}),
    "minimax": (
        "MiniMax",
        {**_SHAPE, "layer_types": _MIXED, "block_size": 8, "num_local_experts": 4},
    ),
}
_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek-v2": ("DeepseekV2", {**_SHAPE, **_LATENT}),
    "deepseek-v3": ("DeepseekV3", {**_SHAPE, **_LATENT, "n_shared_experts": 1}),
    "gemma4": (
        "Gemma4",
        {
            **_SHAPE,
            "head_dim": 16,
            "global_head_dim": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 8,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 8,
        },
    ),
    "gemma4-shared": (
        "Gemma4",
        {
            **_SHAPE,
            "head_dim": 16,
            "global_head_dim": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "sliding_window": 24,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 8,
        },
    ),
}

RECURRENT = tuple(_RECURRENT)
"""Those with recurrent layers, alone or beside attention."""

LATENT = ("deepseek-v2", "deepseek-v3")
"""Those whose rows are latent."""


def make_hybrid(name: str, seed: int = 0) -> LocalModel:
    """A random model of an architecture, in float32, named after it."""
    tokenizer = tiny_tokenizer()
    family, shape = (_RECURRENT | _OTHERS)[name]
    suffix = "TextConfig" if hasattr(transformers, f"{family}TextConfig") else "Config"
    config = getattr(transformers, f"{family}{suffix}")(
        **shape,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    return LocalModel(model, tokenizer, ref=name)
