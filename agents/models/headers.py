"""What a model's configuration tells of it: its cache and its size, without a weight being read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from unspoken.agents.models.caches.calls import DecoderCalls
from unspoken.agents.models.catalog import parse
from unspoken.agents.models.checkpoints.text_part import causal_config
from unspoken.agents.models.decoders.parts import text_decoder
from unspoken.agents.models.embedded import EMBEDDED
from unspoken.agents.models.gguf import read_gguf_config
from unspoken.agents.models.hf_geometry import read_geometry
from unspoken.agents.models.hub import config_folder
from unspoken.agents.models.pretrained import strangers_code
from unspoken.agents.models.quiet import first_line
from unspoken.channels.errors import ModelReferenceError, ModelSupportError, UnspokenError
from unspoken.channels.kv.geometry import CacheGeometry
from unspoken.channels.model_size import Size, size_of_module


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHeader:
    """What is known of a model before it is loaded.

    Attributes:
        ref: Its reference.
        geometry: The shape of its cache.
        size: The numbers among its weights.
        dynamic: Whether its rotary frequencies change with the length of the context.
        dtype: The type that its checkpoint says it stores; None where it says none.
    """

    ref: str
    geometry: CacheGeometry
    size: Size
    dynamic: bool
    dtype: torch.dtype | None


def read_header(ref: str) -> ModelHeader:
    """Read a model's configuration, and build the model without memory for weights.

    Of a Hub model only ``config.json`` is fetched, of a GGUF only the header is read.

    Raises:
        ModelReferenceError: The reference leads to no configuration that transformers knows.
        ModelSupportError: The model cannot be served, or what a token is read by is not said.
    """
    config = _config(ref)
    own = config.get_text_config(decoder=True)
    model = _without_weights(ref, config)
    base, _ = text_decoder(model)
    named = getattr(own, "dtype", None) or getattr(config, "dtype", None)
    dtype = getattr(torch, named, None) if isinstance(named, str) else named
    size = size_of_module(model)
    if size is None:
        raise ModelSupportError(
            f"the configuration of {ref!r} has experts, and does not say how many read a token",
            expected="num_experts_per_tok or another name for it",
            fix="check the configuration",
        )
    rope = json.dumps(getattr(own, "rope_parameters", None) or {}, default=str)
    return ModelHeader(
        ref=ref,
        geometry=read_geometry(DecoderCalls(model, base), base, model.config.get_text_config()),
        size=size,
        dynamic='"dynamic"' in rope or '"longrope"' in rope,
        dtype=dtype if isinstance(dtype, torch.dtype) else None,
    )


def _config(ref: str) -> PreTrainedConfig:
    reference = parse(ref)
    try:
        if reference.kind == "hub":
            return _of_folder(config_folder(reference.name))
        if reference.kind == "folder" and reference.path:
            return _of_folder(reference.path)
        path = reference.path
        return read_gguf_config((path,) if path else EMBEDDED[reference.name].files())
    except UnspokenError:
        raise
    except Exception as error:  # transformers raises almost anything here
        raise strangers_code(ref, error) or _unread(ref, error) from error


def _of_folder(folder: Path) -> PreTrainedConfig:
    config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return config


def _without_weights(ref: str, config: PreTrainedConfig) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            made: Any = AutoModelForCausalLM
            model: PreTrainedModel = made.from_config(
                causal_config(config), trust_remote_code=False
            )
    except UnspokenError:
        raise
    except Exception as error:
        raise strangers_code(ref, error) or _unread(ref, error) from error
    return model


def _unread(ref: str, error: Exception) -> ModelReferenceError:
    return ModelReferenceError(
        f"the configuration of {ref!r} cannot be read: {first_line(error)}",
        expected="the config.json or the GGUF header of a causal language model",
        fix="check the reference",
    )
