"""Every architecture of transformers that writes text, made tiny and random from its config."""

import contextlib
import inspect
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

CAUSAL: Mapping[str, str] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
"""Model types that `AutoModelForCausalLM` knows, with their classes."""

VISION: Mapping[str, str] = {
    kind: name
    for kind, name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items()
    if kind not in CAUSAL and kind not in ("evolla", "shieldgemma2")
}
"""Those that only `AutoModelForImageTextToText` knows, but for proteins and a classifier."""

LAYERS, MOST = 4, 20_000_000

_SIZES: dict[int, tuple[str, ...]] = {
    128: ("vocab_size", "text_vocab_size", "padded_vocab_size"),
    32: (
        *("hidden_size", "n_embd", "n_embed", "d_model", "dim", "embed_dim", "embedding_size"),
        *("lru_width", "word_embed_proj_dim", "decoder_hidden_size", "projection_dim"),
        *("hidden_dim", "out_hidden_size", "projector_hidden_size", "output_hidden_size"),
        *("audio_embed_dim", "cross_attention_hidden_size", "q_lora_rank", "attn_hidden_size"),
        *("encoder_hidden_size", "embed_dim_per_layer", "mm_embed_dim"),
    ),
    48: (
        *("intermediate_size", "ffn_dim", "n_inner", "dim_ff", "ffn_hidden_size", "d_inner"),
        *("decoder_ffn_dim", "encoder_ffn_dim", "dense_intermediate_size", "feed_forward_size"),
        *("prefix_dense_intermediate_size", "intermediate_size_mlp", "dim_feedforward", "d_ff"),
        *("shared_intermediate_size", "block_ff_dim", "mlp_hidden_size", "dff"),
    ),
    LAYERS: (
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
        *("encoder_layers", "num_decoder_layers", "num_encoder_layers", "num_blocks"),
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"),
        *("decoder_attention_heads", "encoder_attention_heads", "num_experts", "dim_heads"),
        *("num_local_experts", "n_routed_experts", "moe_num_experts"),
        "num_decoder_attention_heads",
        *("num_encoder_attention_heads", "swa_num_attention_heads", "moe_num_primary_experts"),
        *("num_routed_experts", "attention_num_heads"),
    ),
    2: (
        *("num_key_value_heads", "num_kv_heads", "num_experts_per_tok", "moe_k"),
        "num_experts_per_token",
        *("moe_topk", "attention_num_key_value_heads", "swa_num_key_value_heads", "top_k_experts"),
        *("num_experts_per_topk", "depth", "num_selected_experts", "num_experts_per_group"),
        *("global_num_key_value_heads", "num_global_key_value_heads"),
    ),
    16: (
        *("moe_intermediate_size", "shared_expert_intermediate_size", "head_dim", "d_kv"),
        *("kv_lora_rank", "qk_nope_head_dim", "v_head_dim", "global_head_dim", "swa_head_dim"),
        *("attention_head_dim", "kv_channels", "expert_intermediate_size"),
        "expert_ffn_hidden_size",
        *("moe_shared_expert_intermediate_size", "swa_v_head_dim", "dim_head", "index_head_dim"),
        *("linear_key_head_dim", "linear_value_head_dim", "mamba_d_head", "mamba_head_dim"),
        *("mamba_d_state", "ssm_state_size", "state_size", "patch_size", "o_lora_rank"),
        *("time_step_rank", "mamba_dt_rank", "hidden_size_per_layer_input", "linear_head_dim"),
        *("attention_hidden_size_per_head", "index_topk_head_dim", "linear_attn_head_dim"),
    ),
    8: (
        *("sliding_window", "qk_rope_head_dim", "rotary_dim", "index_topk", "attention_window"),
        *("attention_chunk_size", "window_size", "sliding_window_size", "local_attention"),
    ),
    256: (
        *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"),
        *("max_sequence_length", "max_target_positions", "max_source_positions", "max_length"),
    ),
    32 * 2: ("image_size", "mamba_d_ssm", "mamba_intermediate_size"),
    1: ("first_k_dense_replace", "n_shared_experts", "num_shared_experts", "n_group", "topk_group"),
}
_SHAPE: dict[str, Any] = {name: size for size, names in _SIZES.items() for name in names}
_SHAPE |= {"initializer_range": 0.2, "init_std": 0.2, "pad_token_id": 0, "bos_token_id": 1}
_SHAPE |= {"eos_token_id": 2, "decoder_start_token_id": 1}
_DERIVED = ("layer_types", "mlp_layer_types", "no_rope_layers", "block_types", "hybrid_layer_ids")
"""What a config class makes of the number of layers, where it is not given."""

_NOT_ENTRIES = ("transformers_version", "architectures", "_name_or_path", "model_type", "dtype")

_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_LATENT = {"head_dim": 8, "qk_head_dim": None, "num_key_value_heads": LAYERS}
_GEMMA4 = {
    "per_layer_config": ...,
    "global_head_dim": 32,
    "layer_types": [_SLIDING, _SLIDING, _FULL, _FULL],
    "vocab_size_per_layer_input": 128,
}
_ZAMBA = {"layers_block_type": ["mamba", "hybrid"] * 2, "attention_hidden_size": 64}


def _mrope(*sections: int) -> dict[str, Any]:
    """Rotary parameters with frequencies for time, height and width, which texts count alike."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}
    return {"rope_parameters": rope}


_ROPES = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in (_FULL, _SLIDING)}

_SPECIAL: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "bailing_hybrid": {**_LATENT, "layer_group_size": 2, "n_group": 1, "topk_group": 1},
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": _ROPES},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "dots3_note_text": {"per_layer_config": None, "num_key_value_heads": LAYERS},
    "falcon_h1": _MAMBA,
    "gemma3n_text": {
        "intermediate_size": 48,
        "activation_sparsity_pattern": None,
        "num_kv_shared_layers": 1,
        "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
        "vocab_size_per_layer_input": 128,
        "laurel_rank": 8,
    },
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "gpt_neo": {
        "attention_types": [[["global", "local"], 2]],
        "attention_layers": ["global", "local"] * 2,
    },
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"] * 2},
    "helium": {"head_dim": 8},
    "hrm_text": {"num_layers_per_stack": None},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kimi_linear": {**_LATENT, "layer_types": [_LINEAR, _FULL] * 2, "linear_num_heads": 2},
    "laguna": {"num_attention_heads_per_layer": None},
    "lfm2": {"layer_types": ["conv", _FULL] * 2},
    "lfm2_moe": {"layer_types": ["conv", _FULL] * 2, "num_dense_layers": 1},
    "longcat_flash": _LATENT,
    "mamba2": {"num_heads": 4, "n_groups": 1, "chunk_size": 8},
    "marian": {"decoder_vocab_size": 128},
    "minicpm3": _LATENT,
    "glm46v_text": _mrope(1, 1, 2),
    "glm4v_text": _mrope(1, 1, 2),
    "glm4v_moe_text": _mrope(1, 1, 0),
    "glm_ocr_text": _mrope(1, 1, 2),
    "paddleocr_vl_text": _mrope(2, 3, 3),
    "qwen2_5_vl_text": _mrope(1, 1, 2),
    "qwen2_vl_text": _mrope(1, 1, 2),
    "reformer": {"axial_pos_embds": False},
    "rwkv": {"attention_hidden_size": 32},
    "xlm": {"emb_dim": 32, "n_words": 128},
    "xlnet": {"d_head": 8},
    "xlstm": {"hidden_size": 32, "embedding_dim": 32},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "youtu": _LATENT,
    "zamba": {**_ZAMBA, "attention_head_dim": 16},
    "zamba2": {
        **_ZAMBA,
        "attention_head_dim": 16,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "chunk_size": 8,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
"""What a class needs besides a shape; `...` leaves an entry out."""

_RECURRENT = re.compile("conv|linear|hybrid|mamba|recurrent")
"""How the types of layers begin that keep more than keys and values, or something else."""

_RECURRENT_CODE = re.compile("update_conv_state|update_recurrent_state")
"""What they call of their cache."""

_TEXT_PARTS = frozenset(("emu3", "llama4", "qwen3_5", "qwen3_5_moe", "qwen4_exp"))
"""Those whose class takes the text part of their configuration."""


def class_of(kind: str) -> str:
    """The name of an architecture's class."""
    return CAUSAL.get(kind) or VISION[kind]


def tiny_config(kind: str, **entries: Any) -> PreTrainedConfig:
    """A small configuration of an architecture.

    Args:
        kind: The model type.
        entries: What to change.
    """
    with quiet():
        plain = transformers.AutoConfig.for_model(kind)
        if kind in _TEXT_PARTS:
            plain = plain.get_text_config()
        return _shrunk(plain, {**_SPECIAL.get(plain.model_type, {}), **entries})


def _shrunk(plain: PreTrainedConfig, special: Mapping[str, Any]) -> PreTrainedConfig:
    parts = {
        name: part
        for name, part in vars(plain).items()
        if isinstance(part, PreTrainedConfig) and name in plain.sub_configs
    }
    before = plain.to_dict()
    entries = {
        name: value
        for name, value in before.items()
        if name not in (*_NOT_ENTRIES, *_DERIVED, *parts)
    }
    entries |= {
        name: value
        for name, value in _SHAPE.items()
        if name in before and isinstance(before[name], int | float | None)
    }
    if isinstance(getattr(plain, "is_decoder", None), bool):
        entries["is_decoder"] = True
    for name, part in parts.items():
        inner = {**_SPECIAL.get(part.model_type, {}), **special.get(name, {})}
        entries[name] = _shrunk(part, inner).to_dict()
    entries |= {name: value for name, value in special.items() if name not in parts}
    entries = {name: value for name, value in entries.items() if value is not ...}
    return type(plain)(**entries)


def lacks_recurrent(model: PreTrainedModel) -> bool:
    """Whether its code has recurrent layers and none of its layers is one."""
    files = {type(module).__module__ for module in model.modules()}
    code = "".join(inspect.getsource(sys.modules[name]) for name in files if "modeling_" in name)
    kinds = {*(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ())}
    return bool(_RECURRENT_CODE.search(code)) and not any(_RECURRENT.match(kind) for kind in kinds)


def tiny_weights(kind: str, **entries: Any) -> PreTrainedModel:
    """A small random model of an architecture, in float32.

    Raises:
        Exception: Whatever a class raises that needs more than a shape.
    """
    config = tiny_config(kind, **entries)
    with quiet():
        with torch.device("meta"):
            size = sum(weight.numel() for weight in _model(kind, config).parameters())
        if size > MOST:
            raise ValueError(f"{size:,} weights")
        torch.manual_seed(0)
        return _model(kind, config)


def _model(kind: str, config: PreTrainedConfig) -> PreTrainedModel:
    made: PreTrainedModel = getattr(transformers, class_of(kind))(config).eval()
    return made


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing is printed while the block runs."""
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        warnings.simplefilter("ignore")
        yield
