"""A layer's trip through a codec."""

from unspoken.channels.kv.codec import Codec, decode, encode
from unspoken.channels.kv.layer_state import LayerState


def recode(codec: Codec, layer: LayerState) -> LayerState:
    """A layer as it is after it was encoded and decoded."""
    keys, values = decode(codec, encode(codec, layer), layer.keys.shape[2], layer.keys.dtype)
    return LayerState(keys, values, layer.first)
