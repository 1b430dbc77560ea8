"""What crosses an edge, and how: states, messages and the channels that carry them."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unspoken.channels.base import Arrival, Carry, CarryReport, Channel, Span, TextSpan
    from unspoken.channels.errors import UnspokenError
    from unspoken.channels.finetunes.recompute import recompute_layers
    from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry, ModelIdentity
    from unspoken.channels.kv.rope import Rotary
    from unspoken.channels.kv.state import KVState, LayerState
    from unspoken.channels.message import Message, Segment
    from unspoken.channels.model import CausalModel, Prefill
    from unspoken.channels.packets.packet import read_packet, write_packet
    from unspoken.channels.packets.reader import PacketReader
    from unspoken.channels.packets.signing import packet_key
    from unspoken.channels.projected import ProjectedCacheChannel
    from unspoken.channels.same_model import SameModelCacheChannel
    from unspoken.channels.text import TextChannel

__all__ = [
    "Arrival",
    "CacheGeometry",
    "Carry",
    "CarryReport",
    "CausalModel",
    "Channel",
    "KVState",
    "LayerGeometry",
    "LayerState",
    "Message",
    "ModelIdentity",
    "PacketReader",
    "Prefill",
    "ProjectedCacheChannel",
    "Rotary",
    "SameModelCacheChannel",
    "Segment",
    "Span",
    "TextChannel",
    "TextSpan",
    "UnspokenError",
    "packet_key",
    "read_packet",
    "recompute_layers",
    "write_packet",
]

_HOMES = {
    "base": ("Arrival", "Carry", "CarryReport", "Channel", "Span", "TextSpan"),
    "errors": ("UnspokenError",),
    "finetunes.recompute": ("recompute_layers",),
    "kv.geometry": ("CacheGeometry", "LayerGeometry", "ModelIdentity"),
    "kv.rope": ("Rotary",),
    "kv.state": ("KVState", "LayerState"),
    "message": ("Message", "Segment"),
    "model": ("CausalModel", "Prefill"),
    "packets.packet": ("read_packet", "write_packet"),
    "packets.reader": ("PacketReader",),
    "packets.signing": ("packet_key",),
    "projected": ("ProjectedCacheChannel",),
    "same_model": ("SameModelCacheChannel",),
    "text": ("TextChannel",),
}


def __getattr__(name: str) -> object:
    """Import a public name's module on first use (PEP 562), so that light commands stay light."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
