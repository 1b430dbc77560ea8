"""Tiny random models with a tokenizer that round-trips any text, for everybody's tests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

__all__ = [
    "CHATML",
    "SPECIALS",
    "WORDS",
    "tiny_gemma3",
    "tiny_gguf",
    "tiny_llama",
    "tiny_tokenizer",
]

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Ids 0, 1 and 2, as in SmolLM2."""

_COMMON = "the of and to in is was for that with on as are by this from what who where which"
_TURNS = "system user assistant question answer reader solver document key value cache"

WORDS = (*(f" {word}" for word in _COMMON.split()), *_TURNS.split(), "er", "ing", "tion")
"""Each becomes one token, and so does every prefix of it."""

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(
    words: Sequence[str] = WORDS, chat_template: str | None = CHATML
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: 3 specials, 256 bytes, one merge per prefix of `words`.

    Other `words` give other token boundaries (and another vocabulary size). No BOS is added;
    eos and pad are ``<|im_end|>``, bos is ``<|im_start|>``, as in SmolLM2.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate((*SPECIALS, *alphabet))}
    merges: list[tuple[str, str]] = []
    for word in words:
        letters = word.replace(" ", "Ġ")
        for end in range(2, len(letters) + 1):
            if letters[:end] not in vocab:
                vocab[letters[:end]] = len(vocab)
                merges.append((letters[: end - 1], letters[end - 1]))
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        unk_token=SPECIALS[0],
        bos_token=SPECIALS[1],
        eos_token=SPECIALS[2],
        pad_token=SPECIALS[2],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def _write(folder: Path, made: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    model: Any = made.to(dtype=made.config.dtype or torch.float32)  # type: ignore[call-arg]
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_llama(
    folder: Path, seed: int = 0, *, tokenizer: PreTrainedTokenizerFast | None = None, **cfg: Any
) -> Path:
    """Write a random Llama (2 layers, hidden 32, 4 heads, 2 KV heads of 8) and its tokenizer.

    Weights are wide enough (std 0.2) for logits to be told apart. `cfg` overrides the config;
    ``dtype="bfloat16"`` rounds the weights, ``tie_word_embeddings=True`` ties them.
    Returns `folder`, created if need be; load it with ``from_pretrained``.
    """
    tokenizer = tokenizer or tiny_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(settings | cfg)))
    return _write(folder, model, tokenizer)


def tiny_gemma3(
    folder: Path,
    seed: int = 0,
    sliding_window: int = 8,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **cfg: Any,
) -> Path:
    """Write a random Gemma 3 (4 layers: sliding, sliding, full, sliding; one KV head of 16).

    Sliding layers see `sliding_window` positions and have a rope base of their own.
    Returns `folder`, created if need be.
    """
    tokenizer = tokenizer or tiny_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "max_position_embeddings": 2048,
        "sliding_window": sliding_window,
        "layer_types": [
            "sliding_attention",
            "sliding_attention",
            "full_attention",
            "sliding_attention",
        ],
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Gemma3ForCausalLM(Gemma3TextConfig(**(settings | cfg)))
    return _write(folder, model, tokenizer)


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
