"""Tiny random models of many architectures, for checks against plain transformers."""

from typing import Any

import torch
from tiny import tiny_tokenizer
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Exaone4Config,
    Exaone4ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GlmConfig,
    GlmForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    NanoChatConfig,
    NanoChatForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from unspoken.agents.models.model import LocalModel

WINDOW = 6
_MIXED = ["sliding_attention", "full_attention"] * 2
_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
_GQA: dict[str, Any] = {**_SHAPE, "num_key_value_heads": 2}


def _configs(vocabulary: int) -> dict[str, tuple[type[PreTrainedModel], Any]]:
    gqa = {**_GQA, "vocab_size": vocabulary}
    headed = {**gqa, "head_dim": 16}
    slides = {"sliding_window": WINDOW, "layer_types": _MIXED}
    yarn = {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 1e4,
        "original_max_position_embeddings": 64,
    }
    neox = {**_SHAPE, "vocab_size": vocabulary, "rotary_pct": 0.5}
    return {
        "llama": (LlamaForCausalLM, LlamaConfig(**gqa)),
        "llama, yarn": (LlamaForCausalLM, LlamaConfig(**gqa, rope_parameters=yarn)),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config(**gqa)),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config(**headed)),
        "mistral, window": (MistralForCausalLM, MistralConfig(**headed, sliding_window=WINDOW)),
        "gemma2": (Gemma2ForCausalLM, Gemma2Config(**headed, **slides, query_pre_attn_scalar=16)),
        "gemma3": (
            Gemma3ForCausalLM,
            Gemma3TextConfig(**headed, **slides, query_pre_attn_scalar=16),
        ),
        "gpt-neox, partial rotary": (GPTNeoXForCausalLM, GPTNeoXConfig(**neox)),
        "smollm3, no rotation in layer 2": (
            SmolLM3ForCausalLM,
            SmolLM3Config(**gqa, no_rope_layers=[1, 1, 0, 1]),
        ),
        "exaone4, no rotation in full attention": (
            Exaone4ForCausalLM,
            Exaone4Config(**gqa, **slides),
        ),
        "cohere2, neighbours rotated": (Cohere2ForCausalLM, Cohere2Config(**gqa, **slides)),
        "glm, neighbours, partial rotary": (GlmForCausalLM, GlmConfig(**gqa, head_dim=16)),
    }


def _otherwise(vocabulary: int) -> dict[str, tuple[type[PreTrainedModel], Any]]:
    """One that rotates the other way, and one whose embeddings hold the positions."""
    gqa = {**_GQA, "vocab_size": vocabulary}
    gpt2 = {"n_embd": 32, "n_layer": 4, "n_head": 4, "vocab_size": vocabulary}
    return {
        "nanochat": (NanoChatForCausalLM, NanoChatConfig(**gqa)),
        "gpt2": (GPT2LMHeadModel, GPT2Config(**gpt2, initializer_range=0.2)),
    }


_TOKENIZER = tiny_tokenizer()
ARCHITECTURES = tuple(_configs(len(_TOKENIZER)))
"""Those whose keys can be moved."""

UNMOVABLE = tuple(_otherwise(len(_TOKENIZER)))
"""Those whose keys hold positions in a way that we do not move."""


def make(name: str, seed: int = 0) -> LocalModel:
    """A random model of an architecture, in float32, named after it."""
    torch.manual_seed(seed)
    size = len(_TOKENIZER)
    kind, config = (_configs(size) | _otherwise(size))[name]
    config.eos_token_id, config.pad_token_id = _TOKENIZER.eos_token_id, _TOKENIZER.pad_token_id
    # Only eager attention has Gemma 2's soft cap.
    config._attn_implementation = "eager" if name == "gemma2" else "sdpa"
    return LocalModel(kind(config), _TOKENIZER, ref=name)


def tuned(name: str, by: float = 0.3) -> LocalModel:
    """A fine-tune of `make(name)`: the same model, every weight moved a little."""
    model = make(name)
    drawn = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.hf.parameters():
            spread = parameter.std() if parameter.dim() > 1 else torch.tensor(0.0)
            parameter += by * spread * torch.randn(parameter.shape, generator=drawn)
    return LocalModel(model.hf, model.tokenizer, ref=f"{name}, tuned")
