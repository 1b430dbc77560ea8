"""Who a model is: digests of its weights, of its configuration and of its tokenizer.

A cache that other weights made gives wrong answers and no error. So models are told apart by what
they compute with, never by name or path. A checkpoint is one model however it is stored (in shards,
as GGUF, with tied or copied weights), and any changed value makes another model. The digests of a
large model take seconds, so they are noted per folder; see `unspoken.agents.models.notes`.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from blake3 import blake3

from unspoken.agents.models.watch import stored_in
from unspoken.channels.errors import ModelSupportError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.storage.forks import hash_threads

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

CHUNK = 16 * 1024 * 1024
"""Values brought to the host and hashed at a time."""

SHAPING = (
    "attention_bias",
    "attention_chunk_size",
    "attention_multiplier",
    "attn_logit_softcapping",
    "embedding_multiplier",
    "final_logit_softcapping",
    "hidden_size",
    "logits_scaling",
    "model_type",
    "no_rope_layers",
    "num_attention_heads",
    "num_hidden_layers",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "use_qk_norm",
)
"""Entries of a configuration that shape a cache and need no normalising."""

NORMALISED = frozenset(
    (
        *("head_dim", "hidden_act", "hidden_activation", "layer_types", "max_position_embeddings"),
        *("num_key_value_heads", "partial_rotary_factor", "rope_parameters", "rope_scaling"),
        *("rope_theta", "sliding_window", *SHAPING),
    )
)
"""Entries that count in a form of their own, since checkpoints write one value in several ways."""

INERT = frozenset(
    (
        # Names and files.
        *("_model_name_or_path", "_name_or_path", "architectures", "auto_map", "dtype"),
        *("is_llama_config", "model_type", "rope_interleaved", "torch_dtype"),
        *("transformers.js_config", "transformers_version", "unsloth_fixed", "unsloth_version"),
        # What calls and generation ask for.
        *("cache_implementation", "output_router_logits", "use_cache"),
        # Ids of special tokens, and labels.
        *("bos_token_id", "cls_token_id", "decoder_start_token_id", "eos_token_id", "id2label"),
        *("label2id", "mask_token_id", "pad_token_id", "problem_type", "sep_token_id"),
        "unk_token_id",
        # Training.
        *("attention_dropout", "attn_pdrop", "classifier_dropout", "embd_pdrop"),
        *("hidden_dropout", "initializer_range", "pretraining_tp", "resid_pdrop"),
        *("router_aux_loss_coef", "router_z_loss_coef"),
        # Sizes that the shapes of the weights have too, and which weights are one.
        *("intermediate_size", "tie_word_embeddings", "vocab_size"),
        # What the layer types and the window, which count, were made of.
        *("_sliding_window_pattern", "max_window_layers", "sliding_window_pattern"),
        "use_sliding_window",
    )
)
"""Entries that change nothing of what is computed; `tests/agents/models/test_config_sweep.py`."""

NORM_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")


def model_identity(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> ModelIdentity:
    """The identity of a model, computed from all of its values as they are now.

    Call it on the model **as loaded in its checkpoint's own dtype**, before any cast: an identity
    is the checkpoint's, and a copy rounded to fewer bits has other values and another identity.
    (Loading with more bits, bfloat16 as float32, changes no value and is fine.)

    Args:
        model: The whole model, on any device.
        tokenizer: Its fast tokenizer.

    Raises:
        ModelSupportError: weights that are not in memory, or a tokenizer without a backend.
    """
    return ModelIdentity(
        weights=weights_digest(model),
        config=config_digest(model.config),
        tokenizer=tokenizer_digest(tokenizer),
    )


def weights_digest(model: "PreTrainedModel") -> str:
    """BLAKE3 (hex) over all weights, the same however they were stored.

    Parameters and persistent buffers are taken by name (base prefix off) in sorted order, tied
    ones once; each counts with its name, shape and values, floats of 32 bits and fewer as
    little-endian float32. Values go through in pieces: no second copy of the model is made.

    Raises:
        ModelSupportError: a weight is not in memory.
    """
    state = {
        f"{name}.{number}" if number else name: part
        for name, tensor in model.state_dict(keep_vars=False).items()
        if isinstance(tensor, torch.Tensor)
        for number, part in enumerate(stored_in(tensor))
    }
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    prefix = f"{model.base_model_prefix}."
    digest = blake3(max_threads=hash_threads())
    named = {name.removeprefix(prefix): value for name, value in _distinct(state, tied).items()}
    for name, tensor in sorted(named.items()):
        kind = "float32" if _fits_float32(tensor) else str(tensor.dtype)
        head = json.dumps([name, list(tensor.shape), kind]).encode()
        digest.update(len(head).to_bytes(8, "little") + head)
        for piece in _pieces(name, tensor):
            digest.update(piece)
    if adapters := _adapters(model):
        digest.update(_json(_plain(adapters)))
    return digest.hexdigest()


def _distinct(
    state: Mapping[str, torch.Tensor], tied: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """Tensors by name; of those that share their values, the first alone."""
    seen: set[tuple[object, ...]] = set()
    distinct = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        twin = state.get(tied.get(name, ""))
        if (tensor.data_ptr() and place in seen) or _is_copy(tensor, twin):
            continue
        seen.add(place)
        distinct[name] = tensor
    return distinct


def _is_copy(tensor: torch.Tensor, twin: torch.Tensor | None) -> bool:
    """Whether a tied weight was copied, as happens across devices."""
    if twin is None or tensor.device == twin.device or twin.shape != tensor.shape:
        return False
    return torch.equal(tensor.cpu(), twin.cpu())


def _fits_float32(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() <= 4


def _pieces(name: str, tensor: torch.Tensor) -> Iterator[memoryview]:
    """The tensor's values in row-major order, as bytes."""
    if tensor.is_meta:
        raise ModelSupportError(
            f"the weight {name} is not in memory",
            expected="a model that is loaded whole",
            fix="load it without disk offload",
        )
    flat = tensor.detach().reshape(-1)
    for start in range(0, flat.numel(), CHUNK):
        piece = flat[start : start + CHUNK].to("cpu")
        piece = piece.to(torch.float32) if _fits_float32(tensor) else piece
        values = piece.contiguous().view(torch.uint8).numpy()
        if sys.byteorder == "big":
            values = values.reshape(-1, piece.dtype.itemsize)[:, ::-1].copy()
        yield values.data


def _adapters(model: "PreTrainedModel") -> dict[str, Any]:
    """What the weights do not say of adapters: their settings (such as lora_alpha)."""
    settings = getattr(model, "peft_config", None) or {}
    skip = ("base_model_name_or_path", "inference_mode", "revision", "peft_version")
    return {
        name: {key: value for key, value in adapter.to_dict().items() if key not in skip}
        for name, adapter in settings.items()
    }


def config_digest(config: "PreTrainedConfig") -> str:
    """BLAKE3 (hex) of a configuration: all entries count but those of `INERT`.

    Those that shape a cache count in a normal form, all others where they are not the default of
    their class. Floats are rounded to 6 significant digits: GGUF keeps 1e-5 as
    9.999999747378752e-06.
    """
    text = config.get_text_config()
    return str(blake3(_json(_plain(_shaping_parts(text) | _others(text)))).hexdigest())


def _others(config: "PreTrainedConfig") -> dict[str, Any]:
    """Entries that are neither inert nor in normal form, and not their class's default."""
    try:
        defaults = _plain(type(config)().to_dict())
    except Exception:  # a class without defaults: all of its entries count
        defaults = {}
    norm = next((name for name in NORM_EPS if _entry(config, name) is not None), "")
    known = INERT | NORMALISED | {norm}
    if getattr(config, "hidden_activation", None) is not None:
        known -= {"hidden_act"}  # of two activations each may be read
    entries = {name: _plain(value) for name, value in config.to_dict().items() if name not in known}
    others = {
        name: value
        for name, value in entries.items()
        if name not in defaults or value != defaults[name]
    }
    return {"others": others} if others else {}


def _shaping_parts(config: "PreTrainedConfig") -> dict[str, Any]:
    def first(*names: str) -> Any:
        values = (_entry(config, name) for name in names)
        return next((value for value in values if value is not None), None)

    heads, layers = first("num_attention_heads"), config.num_hidden_layers
    window = first("sliding_window")
    kinds = first("layer_types") or [("sliding" if window else "full") + "_attention"] * layers
    slides = any("sliding" in kind for kind in kinds)
    rope = _rope(first("rope_parameters", "rope_scaling") or {"rope_theta": first("rope_theta")})
    parts = {name: _entry(config, name) for name in SHAPING} | {
        "activation": first("hidden_activation", "hidden_act"),
        "head_dim": first("head_dim") or (heads and config.hidden_size // heads),
        "kv_heads": first("num_key_value_heads") or heads,
        "layer_types": kinds,
        "norm_eps": first(*NORM_EPS),
        "partial_rotary_factor": first("partial_rotary_factor") or 1.0,
        "rope": rope,
        "sliding_window": window if slides else None,
    }
    if '"dynamic"' in json.dumps(rope) or '"longrope"' in json.dumps(rope):
        parts["max_position_embeddings"] = first("max_position_embeddings")
    return {name: value for name, value in parts.items() if value is not None}


def _entry(config: "PreTrainedConfig", name: str) -> Any:
    """An entry of a configuration; None where each layer has its own, which counts elsewhere."""
    by_layer = getattr(config, "per_layer_attributes", None) or ()
    return None if name in by_layer else getattr(config, name, None)


def _rope(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters, flat or per layer type, without what is None."""
    if parameters and all(isinstance(value, Mapping) for value in parameters.values()):
        return {kind: _rope(value) for kind, value in parameters.items()}
    given = {key: value for key, value in parameters.items() if value is not None}
    return {"rope_type": "default"} | given


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """BLAKE3 (hex) of a fast tokenizer: all of its pipeline and its special tokens' ids.

    Truncation and padding, which calls set, and the chat template do not count.

    Raises:
        ModelSupportError: a slow tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelSupportError(
            f"{type(tokenizer).__name__} is a slow tokenizer",
            expected="a fast tokenizer (a tokenizer.json)",
            fix="load it with AutoTokenizer and use_fast=True, or convert it",
        )
    pipeline = json.loads(backend.to_str())
    for call_setting in ("truncation", "padding"):
        pipeline.pop(call_setting, None)
    special = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in tokenizer.special_tokens_map.items()
    }
    return str(blake3(_json({"pipeline": pipeline, "special": special})).hexdigest())


def _json(value: Any) -> bytes:
    """JSON with sorted keys, the same for equal values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _plain(value: Any) -> Any:
    """A configuration's value in JSON's types, floats rounded to 6 significant digits."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float):
        rounded = float(f"{value:.6g}")
        return int(rounded) if rounded.is_integer() else rounded
    if value is None or isinstance(value, str | int):  # a bool is an int
        return value
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    return [_plain(item) for item in value] if isinstance(value, Iterable) else str(value)
