"""Packets that are cut, changed, unsigned or nonsense."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_packets import KEY, BadPacket, bad_packets, resigned
from hybrids import make_hybrid
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import message_of
from packets import TEXT, read, written

from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import GeometryMismatch, IdentityMismatch, PacketError
from unspoken.channels.message import Message
from unspoken.channels.packets import reader
from unspoken.channels.packets.packet import read_packet

CASES = list(bad_packets())


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def refusal(data: bytes, model: LocalModel, key: bytes | None = KEY) -> PacketError:
    with pytest.raises(PacketError) as caught:
        read(data, model, key)
    assert caught.value.expected
    return caught.value


def test_a_cut_file_is_refused_before_its_layers_are_read(
    tmp_path: Path, model: LocalModel, packet: bytes
) -> None:
    file = tmp_path / "message.packet"
    file.write_bytes(packet[:-1])
    with pytest.raises(PacketError, match=f"{len(packet) - 1} bytes") as caught:
        read_packet(file, model, key=KEY)
    assert caught.value.kind == "truncated"
    file.write_bytes(packet + b"x")
    with pytest.raises(PacketError) as caught:
        read_packet(file, model, key=KEY)
    assert caught.value.kind == "size"


def test_an_unsigned_packet_is_read_only_where_asked(model: LocalModel, message: Message) -> None:
    data = written(message, key=None)
    assert refusal(data, model).kind == "unsigned"
    assert read(data, model, None).context == message.context
    assert refusal(flipped(data, len(data) - 1), model, None).kind == "tampered"


def test_a_stripped_signature_is_no_way_in(model: LocalModel, packet: bytes) -> None:
    (length,) = struct.unpack("<Q", packet[:8])
    head = json.loads(packet[8 : 8 + length])
    manifest = json.loads(head["__metadata__"]["manifest"])
    manifest["key"] = None
    head["__metadata__"] |= {"manifest": json.dumps(manifest), "signature": ""}
    new = json.dumps(head).encode()
    data = struct.pack("<Q", len(new)) + new + packet[8 + length :]
    assert refusal(data, model).kind == "unsigned"


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_a_bad_packet_is_refused_before_any_tensor_is_made(
    bad: BadPacket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for a layer is taken only where its bytes have to be looked at."""
    made = []
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *args, **options: made.append(args) or empty(*args, **options)
    )
    with pytest.raises(bad.error) as caught:
        bad.read()
    assert caught.value.expected
    assert getattr(caught.value, "kind", "") == bad.kind
    assert not made or bad.name in ("cut off in its data", "a changed byte of a layer")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("codec", "int3"),
        ("dtype", "float64"),
        ("context", [-1]),
        ("layers", []),
        ("digests", ["0" * 64]),
        ("hidden", [99]),
        ("approximate_from", "all"),
        ("surprise", 1),
    ],
)
def test_a_manifest_that_makes_no_sense_names_the_field(
    model: LocalModel, packet: bytes, field: str, value: object
) -> None:
    def change(manifest: dict[str, object]) -> None:
        manifest[field] = value

    assert refusal(resigned(packet, change), model).kind == "shape"


@pytest.mark.parametrize(("parts", "snapshots"), [(150, 20), (200, 2900)])
def test_more_snapshots_than_a_header_holds_are_never_listed(
    model: LocalModel, packet: bytes, monkeypatch: pytest.MonkeyPatch, parts: int, snapshots: int
) -> None:
    """A short manifest cannot have a long header made."""
    names = [f"{kind}.{number}" for kind in ("conv", "recurrent") for number in range(100)]
    names = names[:parts]

    def change(manifest: dict[str, Any]) -> None:
        folded = [
            {"layer": layer, "name": name, "shape": [1], "dtype": "float32"}
            for layer in range(len(manifest["layers"]))
            for name in names
        ]
        ids = {"context": [1] * 3000, "snapshots": list(range(1, snapshots + 1))}
        manifest.update(ids, version=3, folded=folded, turns=[])

    monkeypatch.setattr(reader, "header_of", lambda *_: pytest.fail("a header was made"))
    assert refusal(resigned(packet, change), model).kind == "shape"


def test_more_snapshots_than_a_packet_holds_are_refused_when_it_is_written() -> None:
    """The error says how many it may have, and how to have fewer."""
    model = make_hybrid("lfm2")
    message = message_of(model, TEXT)
    state = message.require_state()
    (first, *_) = state.snapshots
    many = replace(state, snapshots=(first,) * 4097)
    with pytest.raises(PacketError, match="4097 snapshots") as caught:
        written(replace(message, state=many))
    assert caught.value.expected and caught.value.fix


def test_a_deeply_nested_header_is_no_packet(model: LocalModel) -> None:
    deep = b'{"__metadata__":' + b"[" * 100_000
    assert refusal(struct.pack("<Q", len(deep)) + deep, model).kind == "format"


def test_a_raw_packet_needs_the_receivers_dtype(model: LocalModel) -> None:
    half = model.cast(torch.bfloat16)
    packet = written(message_of(half.cast(torch.float32), TEXT))
    with pytest.raises(GeometryMismatch, match="float32") as caught:
        read(packet, half)
    assert "int8" in caught.value.fix


@settings(max_examples=200)
@given(draw=st.data())
def test_no_change_of_any_bytes_goes_unnoticed(
    draw: st.DataObject, model: LocalModel, packet: bytes
) -> None:
    bent = bytearray(packet)
    match draw.draw(st.sampled_from(("flip", "cut", "insert", "remove"))):
        case "flip":
            at = draw.draw(st.integers(0, len(bent) - 1))
            bent[at] ^= draw.draw(st.integers(1, 255))
        case "cut":
            del bent[draw.draw(st.integers(0, len(bent) - 1)) :]
        case "insert":
            at = draw.draw(st.integers(0, len(bent) - 1))
            bent[at:at] = draw.draw(st.binary(min_size=1, max_size=40))
        case "remove":
            at = draw.draw(st.integers(0, len(bent) - 1))
            del bent[at : at + draw.draw(st.integers(1, 40))]
    if bytes(bent[: len(packet)]) == packet:  # a stream may go on with something else
        return
    with pytest.raises((PacketError, IdentityMismatch, GeometryMismatch)):
        read(bytes(bent), model)


@given(data=st.binary(max_size=300))
def test_no_bytes_break_the_reader(data: bytes, model: LocalModel) -> None:
    with pytest.raises(PacketError):
        read(data, model)
