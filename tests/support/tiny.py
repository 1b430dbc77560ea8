"""Tiny random models on disk, for everybody's tests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from unspoken.agents.testing.tiny import Family, tiny_weights
from unspoken.agents.testing.tokenizer import CHATML, SPECIALS, WORDS, tiny_tokenizer

__all__ = [
    "CHATML",
    "SPECIALS",
    "WORDS",
    "tiny_gemma3",
    "tiny_gguf",
    "tiny_llama",
    "tiny_of",
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


def tiny_of(
    folder: Path, model_type: str, tokenizer: PreTrainedTokenizerFast | None = None, **config: Any
) -> Path:
    """Write a random model of any architecture of transformers, and its tokenizer."""
    tokenizer = tokenizer or tiny_tokenizer()
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "max_position_embeddings": 256,
        "vocab_size": len(tokenizer),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = AutoConfig.for_model(model_type, **{**shape, **ids, **config})
        AutoModelForCausalLM.from_config(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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


def tiny_gguf(file: Path, folder: Path, *, pre: str = "default", **scaling: Any) -> Path:
    """Write the model in `folder` as a float32 GGUF, as llama.cpp would. Returns `file`.

    Args:
        file: Where to.
        folder: A Llama, Gemma 3 or Qwen with its tokenizer.
        pre: Name of its way to split words.
        scaling: Values of ``rope.scaling``, and ``freqs``, factors per frequency.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    arch = config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(file, arch)
    head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)
    freqs = scaling.pop("freqs", None)
    for name, value in scaling.items():
        text = isinstance(value, str)
        add = writer.add_string if text else writer.add_float32
        add(f"{arch}.rope.scaling.{name}", value)
    _write_vocabulary(writer, PreTrainedTokenizerFast.from_pretrained(folder), pre)
    if freqs is not None:
        writer.add_tensor("rope_freqs.weight", torch.tensor(freqs).numpy())
    for name, tensor in _gguf_tensors(model, arch):
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _gguf_tensors(model: Any, arch: str) -> Iterator[tuple[str, torch.Tensor]]:
    """A model's weights by llama.cpp's names, laid out as it has them."""
    config = model.config
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[arch], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        count = heads.get(name.split(".")[-2]) if arch == "llama" else None
        if count:  # llama.cpp pairs rotary dimensions side by side
            tensor = tensor.view(count, 2, -1, tensor.shape[1]).transpose(1, 2).reshape_as(tensor)
        if arch == "gemma3" and "norm" in name:
            tensor = tensor + 1
        named = names.get_name(name, (".weight", ".bias"))
        assert named is not None
        yield named, tensor


def _write_vocabulary(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, pre: str
) -> None:
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIALS else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
