"""Rotary settings that a GGUF holds and transformers leaves behind when it reads one.

llama.cpp keeps a model's stretched context as metadata (``rope.scaling``: YaRN, linear) or as
factors per frequency in tensors (Llama 3, Phi-3). A model without them answers wrongly beyond its
first thousands of tokens, and nothing says so.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspoken.channels.errors import ModelSupportError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What every model with Llama 3's scaling has, but for the factor."""

_YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
_READ = {"type", "factor", "attn_factor", "original_context_length", "finetuned", *_YARN}
_NEUTRAL = {
    "alpha": (0.0,),
    "yarn_log_multiplier": (0.0,),
    "yarn_ext_factor": (1.0, -1.0),
    "yarn_attn_factor": (1.0,),
}
"""Further settings, and the values with which they change nothing."""
_TOLERANCE = 1e-3


def add_rope_scaling(gguf: Path, config: "PreTrainedConfig") -> None:
    """Put a GGUF's rotary scaling into the configuration that transformers made of the file.

    Args:
        gguf: The file.
        config: The configuration; one whose rotary embedding is scaled already is left as it is.

    Raises:
        ModelSupportError: A scaling that no configuration of transformers expresses.
    """
    from gguf import GGUFReader

    parameters = dict(getattr(config, "rope_parameters", None) or {})
    layered = all(isinstance(value, dict) for value in parameters.values()) and bool(parameters)
    own = parameters.get("full_attention", {}) if layered else parameters
    if not own or own.get("rope_type", "default") != "default":
        return
    scaling = _scaling(GGUFReader(gguf), config, float(own["rope_theta"]))
    if scaling is None:
        return
    if layered:  # windows are short: a context is stretched in the full layers alone
        parameters["full_attention"] = {**own, **scaling}
        config.rope_parameters = parameters
    else:
        config.rope_parameters = {**parameters, **scaling}


def _scaling(reader: Any, config: "PreTrainedConfig", theta: float) -> dict[str, Any] | None:
    """The rotary parameters beside theta; None where nothing is scaled."""
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    fields = {
        name.partition(".rope.scaling.")[2]: field.contents()
        for name, field in reader.fields.items()
        if ".rope.scaling." in name
    }
    original = fields.get("original_context_length")
    if "rope_freqs.weight" in tensors:
        return _llama3([float(factor) for factor in tensors["rope_freqs.weight"]], theta)
    if "rope_factors_long.weight" in tensors:
        return {
            "rope_type": "longrope",
            "long_factor": [float(x) for x in tensors["rope_factors_long.weight"]],
            "short_factor": [float(x) for x in tensors["rope_factors_short.weight"]],
            "original_max_position_embeddings": int(original or config.max_position_embeddings),
        }
    for name, value in fields.items():
        if name not in _READ and value not in _NEUTRAL.get(name, ()):
            raise _unknown(f"the rotary setting {name} = {value!r}")
    kind = fields.get("type", "none")
    attention = float(fields.get("attn_factor", 1.0))
    if attention != 1.0 and (kind != "yarn" or float(fields.get("factor", 1.0)) == 1.0):
        raise _unknown(f"the rotary setting attn_factor = {attention!r} without YaRN")
    if kind == "none" or float(fields.get("factor", 1.0)) == 1.0:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(fields["factor"])}
    if kind == "yarn":
        named = {name: float(fields[key]) for key, name in _YARN.items() if key in fields}
        beside = {"original_max_position_embeddings": int(original)} if original else {}
        factor = float(fields["factor"])
        if attention != 1.0:  # in the file beside YaRN's own; in transformers in its place
            named["attention_factor"] = attention * (1.0 + 0.1 * math.log(factor))
        return {"rope_type": "yarn", "factor": factor, **named, **beside}
    raise _unknown(f"the rotary scaling {kind!r}")


def _llama3(factors: Sequence[float], theta: float) -> dict[str, Any] | None:
    """Llama 3's settings, where the factors per frequency are those that they give."""
    factor = max(factors)
    if factor == 1.0:
        return None
    low, high, span = 1.0, 4.0, 8192
    for index, given in enumerate(factors):
        turns = span / (2 * math.pi * theta ** (index / len(factors)))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        expected = 1.0 / ((1 - smooth) / factor + smooth)
        if abs(given / expected - 1) > _TOLERANCE:
            raise _unknown("rotary factors other than Llama 3's")
    return {**_LLAMA3, "factor": factor}


def _unknown(what: str) -> ModelSupportError:
    return ModelSupportError(
        f"the GGUF has {what}, which its conversion would lose",
        expected="linear, YaRN, LongRoPE or Llama 3's scaling, or none",
        fix="use the model's safetensors from the Hub",
    )
