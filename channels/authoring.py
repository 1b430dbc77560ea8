"""For those who write a channel, a bridge, or a model that channels can compute in.

A channel (see "How to write a channel" in the documentation) derives from `Channel`:

- `Channel` is its base class; `Share` and `Role` are the types of its two required options.
- `Arrival` is what `carry` gets: a `Message` of `Segment` turns in its place in the receiver's
  context. `Span` says where its tokens stand, `TextSpan` where its words do in other tokens.
- `Carry` is what `carry` returns: `Piece` states, each with its `Origin`, and a `CarryReport` with
  its `Mode` and, where another channel took over, its `Fallback`.

States and their shapes:

- `LayerState` holds the keys and values of one layer of a `KVState`.
- `CacheGeometry` and `LayerGeometry` are the shape of a model's cache.
- `Rotary` is a rotary embedding; `shift` moves rotated keys by some positions.

A model keeps `CausalModel`, whose `prefill` returns a `Prefill`. A bridge keeps `Bridge`; its
manifest is a `BridgeEnds` of two `BridgeEnd`, and its `AuditBounds` are what an edge is held to.
"""

from unspoken.channels.base import (
    Arrival,
    Carry,
    CarryReport,
    Channel,
    Fallback,
    Mode,
    Origin,
    Piece,
    Role,
    Share,
    Span,
    TextSpan,
)
from unspoken.channels.bridges.bounds import AuditBounds
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.rope import Rotary, shift
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message, Segment
from unspoken.channels.model import CausalModel, Prefill
from unspoken.channels.projected import Bridge, BridgeEnd, BridgeEnds

__all__ = [
    "Arrival",
    "AuditBounds",
    "Bridge",
    "BridgeEnd",
    "BridgeEnds",
    "CacheGeometry",
    "Carry",
    "CarryReport",
    "CausalModel",
    "Channel",
    "Fallback",
    "KVState",
    "LayerGeometry",
    "LayerState",
    "Message",
    "Mode",
    "Origin",
    "Piece",
    "Prefill",
    "Role",
    "Rotary",
    "Segment",
    "Share",
    "Span",
    "TextSpan",
    "shift",
]
