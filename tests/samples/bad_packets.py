"""Packets that are refused, each with the error it earns.

The tests hold the code to this table, and the documentation prints it.
"""

import io
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from architectures import make
from messages import message_of
from safetensors.torch import save
from torch import zeros

from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import GeometryMismatch, IdentityMismatch, PacketError, UnspokenError
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.message import Message
from unspoken.channels.packets.layout import header_of
from unspoken.channels.packets.manifest import PacketManifest
from unspoken.channels.packets.packet import read_packet, write_packet
from unspoken.channels.packets.signing import signature_of

KEY = b"a key of sixteen bytes"
TEXT = "the key of the document is with the reader, and its value is that of the thing"


@dataclass(frozen=True)
class BadPacket:
    """Bytes that a receiver refuses, with a key, and the error that this raises."""

    name: str
    data: bytes
    receiver: LocalModel
    key: bytes | None
    error: type[UnspokenError]
    kind: str = ""

    def read(self) -> Message:
        """Read it, which fails."""
        return read_packet(io.BytesIO(self.data), self.receiver, key=self.key)


def packet_of(message: Message, key: bytes | None = KEY) -> bytes:
    """A packet's bytes."""
    stream = io.BytesIO()
    write_packet(message, stream, key=key)
    return stream.getvalue()


def resigned(data: bytes, change: Callable[[dict[str, object]], None], key: bytes = KEY) -> bytes:
    """A packet whose manifest somebody with the key has changed, the tensors in place as before."""
    (length,) = struct.unpack("<Q", data[:8])
    head = json.loads(data[8 : 8 + length])
    manifest = json.loads(head["__metadata__"]["manifest"])
    change(manifest)
    text = json.dumps(manifest, separators=(",", ":"))
    head["__metadata__"] |= {"manifest": text, "signature": signature_of(text, key)}
    return _packed(json.dumps(head, separators=(",", ":")).encode()) + data[8 + length :]


def _packed(head: bytes) -> bytes:
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head


def _set(**changes: object) -> Callable[[dict[str, object]], None]:
    return lambda manifest: manifest.update(changes)


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _vast(data: bytes) -> bytes:
    """A whole packet, by its header, of layers that no machine holds."""
    layers = [{"kv_heads": 60_000, "head_dim": 60_000, "first": 0}]
    (length,) = struct.unpack("<Q", data[:8])
    manifest = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["manifest"])
    text = json.dumps(manifest | {"layers": layers, "digests": ["0" * 64]})
    return _packed(
        header_of(PacketManifest.model_validate_json(text), text, signature_of(text, KEY))
    )


def _long(message: Message, count: int) -> Message:
    assert message.state is not None
    layers = tuple(
        LayerState(
            layer.keys[:, :1].expand(-1, count, -1),
            layer.values[:, :1].expand(-1, count, -1),
            layer.first,
        )
        for layer in message.state.layers
    )
    state = replace(message.state, layers=layers, stop=count)
    return replace(message, context=(1,) * count, segments=(), state=state)


def bad_packets() -> Iterator[BadPacket]:
    """All of them, on a small random model."""
    model, other = make("llama"), make("llama", seed=1)
    message = message_of(model, TEXT)
    good = packet_of(message)
    unsigned = packet_of(message, None)
    longest = model.geometry.max_positions

    def case(
        name: str,
        data: bytes,
        kind: str,
        *,
        key: bytes | None = KEY,
        error: type[UnspokenError] = PacketError,
        receiver: LocalModel = model,
    ) -> BadPacket:
        return BadPacket(name, data, receiver, key, error, kind)

    yield case("cut off in its data", good[:-1], "truncated")
    yield case("cut off in its header", good[:100], "truncated")
    yield case("a changed byte of a layer", _flipped(good, len(good) - 1), "tampered")
    yield case("a changed manifest", _flipped(good, good.index(b"reader")), "tampered")
    yield case("another key", good, "key", key=b"another key of this length")
    yield case("signed, and no key given", good, "key", key=None)
    yield case("unsigned, and a key given", unsigned, "unsigned")
    yield case("another model's", good, "", error=IdentityMismatch, receiver=other)
    yield case("another version", resigned(good, _set(version=4)), "version")
    yield case("more tokens than the context holds", packet_of(_long(message, longest + 1)), "size")
    yield case("absurd shapes", _vast(good), "", error=GeometryMismatch)
    yield case("an absurd header", struct.pack("<Q", 2**62) + b"{}", "format")
    yield case("a wrong manifest", resigned(good, _set(codec="int3")), "shape")
    at = good.index(b'"data_offsets":[0,') + len(b'"data_offsets":[0,')
    yield case("tensors in other places", _flipped(good, at), "shape")
    yield case("another safetensors file", save({"a": zeros(3)}), "format")
    yield case("another file", b"# Notes, and not a packet at all", "format")
