"""The shape of a model's cache: as its configuration describes it, or as the model writes it.

Most decoders keep rows of keys and values of one shape in every layer, and their configuration says
so. Of all others the model itself is asked: it reads a few tokens with the cache that transformers
makes for it, and what it wrote there is the shape.
"""

from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from unspoken.agents.models.caches.calls import DecoderCalls
from unspoken.agents.models.caches.recurrent import shapes_of
from unspoken.channels.errors import ModelSupportError
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry, RecurrentPart

_PLAIN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_ODD = (
    *("kv_lora_rank", "num_kv_shared_layers", "kv_sharing_modes", "is_heterogeneous"),
    *("swa_num_key_value_heads", "dim_head", "v_head_dim"),
)
"""Entries of configurations whose layers have caches of other shapes than the entries tell."""

_LONGEST = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length")
"""What configurations call the longest context."""

UNBOUNDED = 1 << 20
"""Positions of a model whose configuration names no end, as one that knows no positions."""

READ = 3
"""Tokens that a model reads to show its cache."""


def layer_types(config: PreTrainedConfig) -> list[str]:
    """The attention type of every layer, by the names transformers uses."""
    types = getattr(config, "layer_types", None)
    if types:
        return list(types)
    window = getattr(config, "sliding_window", None)
    kind = (
        "sliding_attention"
        if window and getattr(config, "use_sliding_window", True)
        else "full_attention"
    )
    return [kind] * int(config.num_hidden_layers)


def read_geometry(calls: DecoderCalls, base: nn.Module, config: PreTrainedConfig) -> CacheGeometry:
    """The cache geometry of a model.

    Args:
        calls: How the model is called.
        base: Its decoder, without the head.
        config: Configuration of its decoder.

    Raises:
        ModelSupportError: A model whose state is not in its cache, or one that cannot be read with;
            then the model's own error is the cause.
    """
    kinds = layer_types(config)
    odd = not set(kinds) <= _PLAIN_LAYERS or any(getattr(config, name, None) for name in _ODD)
    per_type = rope_per_type(config)
    ropes = [kind if per_type else "default" for kind in kinds]
    layers = _written(calls, base, config, ropes) if odd else _described(config, kinds, ropes)
    named = (getattr(config, name, None) for name in _LONGEST)
    longest = next(filter(None, named), UNBOUNDED)
    return CacheGeometry(layers, int(config.hidden_size), int(longest))


def _described(
    config: PreTrainedConfig, kinds: list[str], ropes: list[str]
) -> tuple[LayerGeometry, ...]:
    """The layers of a plain decoder, as its configuration describes them."""
    if getattr(config, "num_attention_heads", None) is None:
        raise _unserved(config, "is no cache of attention")
    heads = int(config.num_attention_heads)
    kv_heads = _kv_heads(config, heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return tuple(
        LayerGeometry(
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope=rope,
            window=int(config.sliding_window) if kind == "sliding_attention" else None,
        )
        for kind, rope in zip(kinds, ropes, strict=True)
    )


@torch.no_grad()
def _written(
    calls: DecoderCalls, base: nn.Module, config: PreTrainedConfig, ropes: list[str]
) -> tuple[LayerGeometry, ...]:
    """The layers as a model writes them when it reads a few tokens."""
    count = min(READ, int(config.vocab_size))
    ids = torch.arange(count, device=next(base.parameters()).device)
    try:
        cache: Any = calls.plain_cache(config)
        base(**calls.inputs(ids, ids, cache))
    except Exception as error:  # an architecture's own code may raise anything here
        raise _unserved(config, f"cannot be read with: {type(error).__name__}: {error}") from error
    lists = getattr(cache, "linear_cache", [])
    layers = []
    kinds = layer_types(config)
    if len(cache.layers) > len(kinds):
        raise _unserved(config, f"has {len(cache.layers)} layers, and the model {len(kinds)}")
    # A cache of a model's own ends with the last layer that writes rows.
    for number, (layer, kind) in enumerate(zip_longest(cache.layers, kinds)):
        folded = lists[number] if number < len(lists) else []
        written = _written_layer(config, layer, folded, ropes[number])
        # A layer that sees its own stretch of the context is told so by its kind.
        layers.append(replace(written, window=None) if "chunked" in kind else written)
    if not any(layer.kv_heads or layer.recurrent for layer in layers):
        raise _unserved(config, "stays empty")
    return tuple(layers)


def _written_layer(config: PreTrainedConfig, layer: Any, folded: Any, rope: str) -> LayerGeometry:
    recurrent: tuple[RecurrentPart, ...] = ()
    if isinstance(folded, torch.Tensor):
        shape = tuple(folded.shape[1:])
        recurrent = (RecurrentPart(name="recurrent.0", shape=shape, dtype=folded.dtype),)
    elif isinstance(layer, LinearAttentionCacheLayerMixin):
        recurrent = shapes_of(layer)
        if not recurrent:
            raise _unserved(config, "has nothing of its recurrent layers, which keep it themselves")
    indexer = getattr(layer, "indexer_keys", None)
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None or values is None or not keys.numel():
        return LayerGeometry(kv_heads=0, head_dim=0, rope=None, recurrent=recurrent)
    behind = 0 if indexer is None else indexer.shape[-1]
    heads, head_dim, value_dim = keys.shape[1], keys.shape[3] + behind, values.shape[3]
    return LayerGeometry(
        kv_heads=heads,
        head_dim=head_dim,
        rope=rope,
        window=getattr(layer, "sliding_window", None),
        value_dim=None if value_dim == head_dim else value_dim,
        indexer=behind,
        latent=bool(getattr(config, "kv_lora_rank", None)) and heads == 1,
        recurrent=recurrent,
    )


def _unserved(config: PreTrainedConfig, why: str) -> ModelSupportError:
    return ModelSupportError(
        f"the cache of a {config.model_type} model {why}",
        expected="a decoder whose layers write all that they keep into the cache of transformers",
        fix="use another model",
    )


def _kv_heads(config: PreTrainedConfig, heads: int) -> int:
    """Heads of keys and values: one with multi-query attention, as configurations call it."""
    if getattr(config, "multi_query", False) and not getattr(
        config, "new_decoder_architecture", False
    ):
        return 1
    named = getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None)
    return int(named or heads)


def rope_per_type(config: PreTrainedConfig) -> bool:
    """Whether each attention type of a model rotates by parameters of its own."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return bool(parameters) and set(parameters) <= _PLAIN_LAYERS
