"""Tiny random models on disk, for everybody's tests."""

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from unspoken.agents.testing.tiny import Family, tiny_weights
from unspoken.agents.testing.tokenizer import CHATML, SPECIALS, WORDS, tiny_tokenizer

__all__ = [
    "CHATML",
    "SPECIALS",
    "WORDS",
    "tiny_gemma3",
    "tiny_gguf",
    "tiny_llama",
    "tiny_tokenizer",
]


def tiny_llama(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Write a random Llama and its tokenizer; see `unspoken.agents.testing.tiny_model`.

    ``dtype="bfloat16"`` rounds the weights, ``tie_word_embeddings=True`` ties them. Returns
    `folder`, created if need be; load it with ``from_pretrained``.
    """
    return _write(folder, seed, "llama", **settings)


def tiny_gemma3(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Write a random Gemma 3 (sliding, sliding, full, sliding) and its tokenizer."""
    return _write(folder, seed, "gemma3", **settings)


def _write(
    folder: Path,
    seed: int,
    family: Family,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **config: Any,
) -> Path:
    tokenizer = tokenizer or tiny_tokenizer()
    tiny_weights(tokenizer, seed, family=family, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_gguf(file: Path, folder: Path) -> Path:
    """Write the Llama in `folder` (made by `tiny_llama`) as a float32 GGUF. Returns `file`."""
    model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, writer = model.config, gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _write_vocabulary(writer, PreTrainedTokenizerFast.from_pretrained(folder))
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        path = name.removesuffix(".weight").removeprefix("model.").split(".")
        block = f"blk.{path[1]}." if path[0] == "layers" else ""
        if count := heads.get(path[-1]):  # llama.cpp pairs rotary dimensions side by side
            tensor = tensor.view(count, 2, -1, tensor.shape[1]).transpose(1, 2).reshape_as(tensor)
        stem = _GGUF_NAMES[".".join(path[2:] if block else path)]
        writer.add_tensor(f"{block}{stem}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _write_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast) -> None:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
