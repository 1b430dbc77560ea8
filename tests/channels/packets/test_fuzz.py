"""Packets that somebody with the key has bent: whatever is wrong with them, the reader says so."""

import io
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bad_packets import KEY, resigned
from bent_json import bent
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packets import read, written

from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import GeometryMismatch, IdentityMismatch, PacketError
from unspoken.channels.kv.codec import CODECS, layout
from unspoken.channels.message import Message
from unspoken.channels.packets.layout import header_of
from unspoken.channels.packets.manifest import DTYPES, PacketManifest
from unspoken.channels.packets.packet import read_packet
from unspoken.channels.packets.reader import PacketReader
from unspoken.channels.packets.signing import signature_of
from unspoken.channels.storage.strict_json import parse_json

REFUSED = (PacketError, IdentityMismatch, GeometryMismatch)


def split(packet: bytes) -> tuple[dict[str, Any], str, bytes]:
    """A packet's header, its manifest as text, and its data."""
    (length,) = struct.unpack("<Q", packet[:8])
    head = json.loads(packet[8 : 8 + length])
    return head, head["__metadata__"]["manifest"], packet[8 + length :]


def signed(packet: bytes, text: str, signature: str | None = None) -> bytes:
    """The packet with another manifest's text, signed with the right key."""
    head, _, data = split(packet)
    if signature is None:
        signature = signature_of(text.encode("utf-8", "replace").decode(), KEY)
    head["__metadata__"] |= {"manifest": text, "signature": signature}
    new = json.dumps(head, separators=(",", ":")).encode()
    new += b" " * (-len(new) % 8)
    return struct.pack("<Q", len(new)) + new + data


def laid_out(packet: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The packet with a changed manifest, and with the header that goes with it, where one does."""
    _, text, data = split(packet)
    manifest = json.loads(text)
    change(manifest)
    text = json.dumps(manifest)
    try:
        head = header_of(PacketManifest.model_validate_json(text), text, signature_of(text, KEY))
    except ValueError:
        return signed(packet, text)
    return struct.pack("<Q", len(head)) + head + data


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_a_signed_manifest_with_any_field_bent_is_refused_or_whole(
    draw: st.DataObject, model: LocalModel, packet: bytes
) -> None:
    """What is read all the same can be put into a packet again, and is the same then."""
    changed = laid_out(packet, lambda manifest: draw.draw(bent(manifest)))
    try:
        message = read(changed, model)
    except REFUSED as error:
        assert error.expected
        return
    again = read(written(message), model)
    assert (again.context, again.segments, again.sharer) == (
        message.context,
        message.segments,
        message.sharer,
    )


@settings(max_examples=150)
@given(draw=st.data())
def test_a_signed_manifest_with_any_characters_bent_is_refused_or_whole(
    draw: st.DataObject, model: LocalModel, packet: bytes
) -> None:
    """The text itself, signed as it stands: no JSON, half of it, other characters."""
    text = split(packet)[1]
    at = draw.draw(st.integers(0, len(text) - 1))
    stop = draw.draw(st.integers(at, min(len(text), at + 30)))
    put = draw.draw(st.one_of(st.text(max_size=6), st.sampled_from(["NaN", "1e999", "[" * 2000])))
    try:
        read(signed(packet, text[:at] + put + text[stop:]), model)
    except REFUSED as error:
        assert error.expected


def version(value: str) -> Callable[[str], str]:
    return lambda text: text.replace('"version":1', f'"version":{value}')


TEXTS: dict[str, Callable[[str], str]] = {
    "half a character": lambda text: text.replace('"reader"', '"\ud800"'),
    "half a character, escaped": lambda text: text.replace('"reader"', r'"\ud800"'),
    "a key twice": lambda text: text.replace('{"version":1', '{"version":1,"version":1', 1),
    "NaN": version("NaN"),
    "a number past all": version("1e999"),
    "a number of many digits": version("9" * 5000),
    "true for one": version("true"),
    "one with a point": version("1.0"),
    "a deep list": version("[" * 500 + "]" * 500),
    "a very deep list": version("[" * 100_000 + "]" * 100_000),
    "a deep key": lambda text: text.replace('"key":"', '"key":' + "[" * 90 + "]" * 90 + ',"x":"'),
    "no JSON": lambda text: text[:-1],
    "no object": lambda text: f"[{text}]",
    "nothing": lambda text: "",
    "a byte order mark": lambda text: "\ufeff" + text,
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_manifest_with_more_than_one_meaning_is_no_packet(
    name: str, model: LocalModel, packet: bytes
) -> None:
    """Also where somebody with the key has signed it."""
    text = TEXTS[name](split(packet)[1])
    for key in (KEY, None):
        with pytest.raises(PacketError) as caught:
            read(signed(packet, text), model, key)
        assert caught.value.expected
        caught.value.found.encode()  # it can be printed


@pytest.mark.parametrize("signature", ["\ud800", "é", "", "0" * 10**6])
def test_a_signature_that_is_none_is_tampered_with(
    signature: str, model: LocalModel, packet: bytes
) -> None:
    with pytest.raises(PacketError) as caught:
        read(signed(packet, split(packet)[1], signature), model)
    assert caught.value.kind in ("tampered", "format")


@pytest.mark.parametrize("length", [0, 1, 7, 2**31, 2**32 + 8, 2**63 - 1, 2**63, 2**64 - 1])
def test_any_length_of_a_header_is_no_packet(length: int, model: LocalModel, packet: bytes) -> None:
    """No room is made for what is only announced."""
    with pytest.raises(PacketError):
        read(struct.pack("<Q", length) + packet[8:], model)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("another name", lambda head: head.update({"läyers.0.keys": head.pop("layers.0.keys")})),
        ("another dtype", lambda head: head["layers.0.keys"].update(dtype="F64")),
        ("no dtype", lambda head: head["layers.0.keys"].update(dtype="\ud800")),
        ("a negative size", lambda head: head["layers.0.keys"].update(shape=[-1, 2, 3])),
        ("a vast size", lambda head: head["layers.0.keys"].update(shape=[2**63, 2, 3])),
        (
            "overlapping",
            lambda head: head["layers.1.keys"].update(
                data_offsets=head["layers.0.keys"]["data_offsets"]
            ),
        ),
        ("beyond the end", lambda head: head["layers.1.keys"].update(data_offsets=[0, 2**63])),
        ("one more", lambda head: head.update(more=dict(head["layers.0.keys"]))),
        ("one less", lambda head: head.pop("layers.1.values")),
        ("no offsets", lambda head: head["layers.0.keys"].pop("data_offsets")),
        ("more metadata", lambda head: head["__metadata__"].update(more="x")),
    ],
)
def test_tensors_that_lie_otherwise_than_was_signed_are_refused(
    name: str, change: Callable[[dict[str, Any]], Any], model: LocalModel, packet: bytes
) -> None:
    head, _, data = split(packet)
    change(head)
    new = json.dumps(head, separators=(",", ":")).encode()
    new += b" " * (-len(new) % 8)
    with pytest.raises(PacketError):
        read(struct.pack("<Q", len(new)) + new + data, model)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("context", [], "context"),
        ("approximate_from", 10**6, "approximate after"),
        ("turns", lambda turns: turns * 2, "overlap"),
        ("turns", lambda turns: [{**turns[0], "ends": [5, 4]}], "ends of"),
        ("turns", lambda turns: [{**turns[0], "ends": turns[0]["ends"][::-1]}], "descend"),
        ("turns", lambda turns: [{**turns[0], "text": ""}], "after the text"),
        ("turns", lambda turns: [{**turns[0], "content": [5, 4]}], "outside their turn"),
    ],
)
def test_a_message_that_contradicts_itself_is_refused(
    field: str, value: Any, says: str, model: LocalModel, packet: bytes
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest[field] = value(manifest[field]) if callable(value) else value

    with pytest.raises(PacketError, match=says) as caught:
        read(laid_out(packet, change), model)
    assert caught.value.kind == "shape"


def test_tokens_that_the_receiver_does_not_know_are_refused(
    model: LocalModel, packet: bytes
) -> None:
    """They have no embedding: a run would end in an error of torch's, or of the device."""
    known = model.vocabulary

    def change(manifest: dict[str, Any]) -> None:
        manifest["context"][0] = known

    with pytest.raises(PacketError, match=f"the token {known}") as caught:
        read(laid_out(packet, change), model)
    assert str(known) in caught.value.expected


def test_a_layer_that_lacks_rows_the_receiver_looks_at_is_refused(
    model: LocalModel, message: Message
) -> None:
    """Every layer here sees all tokens before it, or those of its window."""
    assert message.state is not None
    data = written(message)
    stop = len(message.context)

    def change(manifest: dict[str, Any]) -> None:
        manifest["layers"] = [layer | {"first": stop} for layer in manifest["layers"]]

    with PacketReader(io.BytesIO(laid_out(data, change)), key=KEY) as reader:
        assert reader.manifest.layers[0].first == stop
        with pytest.raises(PacketError, match="begins at position"):
            reader.check(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(
    value: float, model: LocalModel, message: Message
) -> None:
    """One of them in a cache makes every later word meaningless."""
    assert message.state is not None
    data = bytearray(written(message))
    manifest = json.loads(split(bytes(data))[1])
    shape = manifest["layers"][-1]
    parts = layout(
        "raw", shape["kv_heads"], len(message.context), shape["head_dim"], DTYPES["float32"]
    )
    size = sum(part.nbytes for part in parts)
    data[-4:] = struct.pack("<f", value)
    digest = blake3(bytes(data[-size:])).hexdigest()
    changed = resigned(
        bytes(data),
        lambda manifest: manifest["digests"].__setitem__(-1, digest),  # type: ignore[attr-defined]
    )
    with pytest.raises(PacketError, match="not finite"):
        read(changed, model)


class Breaking:
    """A stream whose other end goes away."""

    def __init__(self, data: bytes, error: Exception) -> None:
        self.data, self.error, self.at = data, error, 0

    def read(self, size: int, /) -> bytes:
        if self.at >= len(self.data):
            raise self.error
        piece = self.data[self.at : self.at + size]
        self.at += len(piece)
        return piece

    def readinto(self, buffer: memoryview, /) -> int:
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize(
    "error", [ConnectionResetError("gone"), TimeoutError(), ValueError("shut")]
)
@pytest.mark.parametrize("part", [0.0, 0.001, 0.5])
def test_a_stream_that_breaks_off_is_a_packet_that_ends(
    error: Exception, part: float, model: LocalModel, packet: bytes
) -> None:
    with pytest.raises(PacketError, match="breaks off") as caught:
        read_packet(Breaking(packet[: int(part * len(packet))], error), model, key=KEY)
    assert caught.value.kind == "truncated"


@pytest.mark.parametrize("codec", CODECS)
def test_whole_packets_of_all_codecs_are_finite(
    codec: Any, model: LocalModel, message: Message
) -> None:
    back = read(written(message, codec=codec), model).state
    assert back is not None
    assert all(torch.isfinite(layer.keys).all() for layer in back.layers)


@given(text=st.text(max_size=60))
def test_strict_json_gives_what_json_gives_or_a_value_error(text: str) -> None:
    try:
        value = parse_json(text)
    except ValueError:
        return
    assert value == json.loads(text)
