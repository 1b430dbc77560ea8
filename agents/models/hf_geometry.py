"""The shape of the cache that a transformers configuration describes."""

from transformers import PreTrainedConfig

from unspoken.channels.errors import ModelSupportError
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry

_SUPPORTED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}

_LONGEST = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "seq_length")
"""What configurations call the longest context."""

UNBOUNDED = 1 << 20
"""Positions of a model whose configuration names no end, as one that knows no positions."""


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


def read_geometry(config: PreTrainedConfig) -> CacheGeometry:
    """The cache geometry of a transformers configuration.

    Raises:
        ModelSupportError: Layers whose cache is not plain keys and values per position.
    """
    types = layer_types(config)
    odd = sorted(set(types) - _SUPPORTED_LAYERS)
    for attribute in ("kv_lora_rank", "num_kv_shared_layers"):
        if getattr(config, attribute, None):
            odd.append(attribute)
    if odd:
        raise ModelSupportError(
            f"a {config.model_type} model has {', '.join(odd)}, which leaves no plain keys and "
            "values to hand over",
            expected="a decoder with full or sliding attention in every layer",
            fix="use another model",
        )
    heads = int(config.num_attention_heads)
    kv_heads = _kv_heads(config, heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    per_type = rope_per_type(config)
    layers = tuple(
        LayerGeometry(
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope=kind if per_type else "default",
            window=int(config.sliding_window) if kind == "sliding_attention" else None,
        )
        for kind in types
    )
    named = (getattr(config, name, None) for name in _LONGEST)
    longest = next(filter(None, named), UNBOUNDED)
    return CacheGeometry(layers, int(config.hidden_size), int(longest))


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
    return bool(parameters) and set(parameters) <= _SUPPORTED_LAYERS
