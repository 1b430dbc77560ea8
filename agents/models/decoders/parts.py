"""Where a decoder of transformers has its parts: what reads tokens, its layers, their rotation."""

from collections.abc import Iterable, Iterator
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from unspoken.channels.errors import ModelSupportError
from unspoken.channels.kv.rope import Rotary

_OWNERS = ("", "model", "decoder", "encoder", "transformer", "language_model")
_CACHES = frozenset(("past_key_values", "cache_params"))
_LISTS = ("layers", "h", "blocks", "layer")


def text_decoder(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """The module that turns token ids into hidden states, and its layers.

    Of a model that also sees or hears it is the part that reads and writes text.

    Raises:
        ModelSupportError: A model without a cache, or without a list of as many layers as its
            configuration says.
    """
    config = model.config.get_text_config()
    if not _CACHES & set(signature(model.forward).parameters):
        raise ModelSupportError(
            f"a {config.model_type} model takes no cache that could be handed over",
            expected="a model whose forward takes past_key_values or cache_params",
            fix="use another model",
        )
    for module in _candidates(model):
        for name in _OWNERS:
            owner = getattr(module, name, None) if name else module
            for listed in _LISTS:
                layers = getattr(owner, listed, None)
                if isinstance(layers, nn.ModuleList) and len(layers) == config.num_hidden_layers:
                    return module, layers
    raise ModelSupportError(
        f"a {config.model_type} model has no {' or '.join(_LISTS)} on its decoder",
        expected="a decoder-only transformer whose layers are in one list",
        fix="use another model",
    )


def _candidates(model: PreTrainedModel) -> Iterator[nn.Module]:
    """Modules that may read tokens, the likeliest first; a head's own model never is one."""
    decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
    for module in (decoder, model.base_model, getattr(model, "model", None)):
        if isinstance(module, nn.Module) and module is not model:
            yield module


def rotary_module(base: nn.Module, layers: nn.ModuleList) -> nn.Module | None:
    """What rotates the keys of a decoder: one for all layers, or the first layer's own."""
    for name, module in base.named_children():
        if name == "rotary_emb":
            return module
    first: nn.Module = layers[0]
    for name, inner in first.named_modules():
        if name.endswith("rotary_emb") and hasattr(inner, "inv_freq"):
            found: nn.Module = inner
            return found
    return None


def table_frequencies(config: PreTrainedConfig, device: torch.device) -> Tensor | None:
    """Frequencies of a decoder whose attention looks its rotation up in a table, as GPT-J does."""
    size = getattr(config, "rotary_dim", None)
    if not size:
        return None
    exponents = torch.arange(0, int(size), 2, dtype=torch.float32, device=device) / int(size)
    frequencies: Tensor = 1.0 / (10000.0**exponents)
    return frequencies


def positions_held(config: PreTrainedConfig, longest: int, ropes: Iterable[Rotary | None]) -> int:
    """Positions until rotary frequencies change, where they do; `longest` at most."""
    if not any(rotary is not None and rotary.dynamic for rotary in ropes):
        return longest
    parameters = getattr(config, "rope_parameters", None) or {}
    name = "original_max_position_embeddings"
    return min(longest, int(parameters.get(name) or getattr(config, name, None) or longest))


def unable(why: str, fix: str) -> ModelSupportError:
    """What a model was found not to do."""
    return ModelSupportError(
        f"this model cannot do that: {why}", expected="a model that can", fix=fix
    )
