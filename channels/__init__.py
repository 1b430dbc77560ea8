"""What crosses an edge, and how: states, messages, and the channels that carry them.

What only authors of channels and bridges need is in `unspoken.channels.authoring`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unspoken.channels.authoring import Arrival as Arrival
    from unspoken.channels.authoring import CacheGeometry as CacheGeometry
    from unspoken.channels.authoring import Carry as Carry
    from unspoken.channels.authoring import CarryReport as CarryReport
    from unspoken.channels.authoring import CausalModel as CausalModel
    from unspoken.channels.authoring import Channel as Channel
    from unspoken.channels.authoring import LayerGeometry as LayerGeometry
    from unspoken.channels.authoring import LayerState as LayerState
    from unspoken.channels.authoring import Prefill as Prefill
    from unspoken.channels.authoring import Rotary as Rotary
    from unspoken.channels.authoring import Segment as Segment
    from unspoken.channels.authoring import Span as Span
    from unspoken.channels.authoring import TextSpan as TextSpan
    from unspoken.channels.errors import (
        AgentError,
        BridgeError,
        ChannelError,
        ContextLengthError,
        GeometryMismatch,
        IdentityMismatch,
        InputError,
        ModelReferenceError,
        ModelSupportError,
        PacketError,
        Problem,
        ProfileError,
        RunError,
        RunTimeout,
        RunWaiting,
        StateError,
        StoreError,
        TemplateError,
        UnspokenError,
        WorkflowError,
    )
    from unspoken.channels.finetunes.recompute import recompute_layers
    from unspoken.channels.kv.geometry import ModelIdentity
    from unspoken.channels.kv.state import KVState
    from unspoken.channels.message import Message
    from unspoken.channels.packets.packet import read_packet, write_packet
    from unspoken.channels.packets.reader import PacketReader
    from unspoken.channels.packets.signing import packet_key
    from unspoken.channels.projected import ProjectedCacheChannel
    from unspoken.channels.same_model import SameModelCacheChannel
    from unspoken.channels.text import TextChannel

__all__ = [
    "AgentError",
    "BridgeError",
    "ChannelError",
    "ContextLengthError",
    "GeometryMismatch",
    "IdentityMismatch",
    "InputError",
    "KVState",
    "Message",
    "ModelIdentity",
    "ModelReferenceError",
    "ModelSupportError",
    "PacketError",
    "PacketReader",
    "Problem",
    "ProfileError",
    "ProjectedCacheChannel",
    "RunError",
    "RunTimeout",
    "RunWaiting",
    "SameModelCacheChannel",
    "StateError",
    "StoreError",
    "TemplateError",
    "TextChannel",
    "UnspokenError",
    "WorkflowError",
    "packet_key",
    "read_packet",
    "recompute_layers",
    "write_packet",
]

_HOMES = {
    "KVState": "kv.state",
    "Message": "message",
    "ModelIdentity": "kv.geometry",
    "PacketReader": "packets.reader",
    "ProjectedCacheChannel": "projected",
    "SameModelCacheChannel": "same_model",
    "TextChannel": "text",
    "packet_key": "packets.signing",
    "read_packet": "packets.packet",
    "recompute_layers": "finetunes.recompute",
    "write_packet": "packets.packet",
}
"""Modules of the names that are no errors."""

_AUTHORS = (
    "Arrival",
    "CacheGeometry",
    "Carry",
    "CarryReport",
    "CausalModel",
    "Channel",
    "LayerGeometry",
    "LayerState",
    "Prefill",
    "Rotary",
    "Segment",
    "Span",
    "TextSpan",
)
"""Names of `authoring` that can be imported from here too."""


def __getattr__(name: str) -> object:
    """Import a public name's module on first use (PEP 562), so that light commands stay light."""
    if name in _AUTHORS:
        home = "authoring"
    elif name in __all__:
        home = _HOMES.get(name, "errors")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
