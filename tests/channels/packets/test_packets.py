"""Packets: whole and genuine, or refused with the reason, before anything is made of them."""

import errno
import io
import json
import os
import socket
import struct
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_packets import KEY, BadPacket, bad_packets, resigned
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import message_of, receive
from pairs import load
from safetensors import safe_open

from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import (
    GeometryMismatch,
    IdentityMismatch,
    InputError,
    PacketError,
    StateError,
)
from unspoken.channels.kv.codec import CODECS, Codec, recode
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message
from unspoken.channels.packets.packet import read_packet, write_packet
from unspoken.channels.packets.reader import PacketReader
from unspoken.channels.packets.signing import KEY_FILE_VARIABLE, KEY_VARIABLE, packet_key

CASES = list(bad_packets())
TEXT = "the key of the document is with the reader, and its value is that of the thing"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalModel, LocalModel]:
    return load(tmp_path_factory.mktemp("packets"))


@pytest.fixture(scope="module")
def model(models: tuple[LocalModel, LocalModel]) -> LocalModel:
    return models[0]


@pytest.fixture(scope="module")
def message(model: LocalModel) -> Message:
    return message_of(model, TEXT)


@pytest.fixture(scope="module")
def packet(message: Message) -> bytes:
    return written(message)


def written(message: Message, key: bytes | None = KEY, codec: Codec = "raw") -> bytes:
    stream = io.BytesIO()
    assert write_packet(message, stream, key=key, codec=codec) == len(stream.getvalue())
    return stream.getvalue()


def read(data: bytes, model: LocalModel, key: bytes | None = KEY) -> Message:
    return read_packet(io.BytesIO(data), model, key=key)


def bits(state: KVState) -> list[bytes]:
    tensors = [tensor for layer in state.layers for tensor in (layer.keys, layer.values)]
    return [
        tensor.contiguous().view(torch.uint8).numpy().tobytes()
        for tensor in (*tensors, *state.hidden.values())
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_raw_packet_gives_back_every_bit(model: LocalModel, dtype: torch.dtype) -> None:
    receiver = model if dtype == torch.float32 else model.cast(dtype)
    message = message_of(receiver, TEXT)
    assert message.state is not None
    hidden = {1: torch.randn(len(message.context), receiver.geometry.hidden_size, dtype=dtype)}
    message = replace(message, state=replace(message.state, hidden=hidden))
    back = read(written(message), receiver)
    assert back.state is not None and message.state is not None
    assert bits(back.state) == bits(message.state)
    assert replace(back, state=None) == replace(message, state=None)
    assert back.segments[0].ends == message.segments[0].ends
    assert back.state.exact


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_a_lossy_packet_gives_what_its_codec_keeps_and_says_so(
    model: LocalModel, message: Message, codec: Codec
) -> None:
    assert message.state is not None
    back = read(written(message, codec=codec), model).state
    assert back is not None and back.approximate_from == 0
    for mine, theirs in zip(back.layers, message.state.layers, strict=True):
        kept = recode(codec, theirs)
        assert torch.equal(mine.keys, kept.keys) and torch.equal(mine.values, kept.values)


def test_a_trimmed_state_keeps_where_each_layer_begins(model: LocalModel) -> None:
    message = message_of(model, TEXT)
    assert message.state is not None
    message = replace(message, state=message.state.trim(model.geometry))
    back = read(written(message), model).state
    assert back is not None and message.state is not None
    assert [layer.first for layer in back.layers] == [layer.first for layer in message.state.layers]
    assert min(layer.first for layer in back.layers) < max(layer.first for layer in back.layers)


def test_a_received_message_continues_like_the_sharers_own(
    model: LocalModel, message: Message, packet: bytes
) -> None:
    ids, parts = receive(model, read(packet, model))
    own = receive(model, message)[1]
    assert parts.missing == own.missing and len(parts.missing) < len(ids)
    assert [state.exact for state in parts.states] == [state.exact for state in own.states]


@pytest.mark.parametrize("codec", CODECS)
def test_a_packet_is_a_safetensors_file(tmp_path: Path, message: Message, codec: Codec) -> None:
    file = tmp_path / "message.packet"
    write_packet(message, file, key=KEY, codec=codec)
    with safe_open(file, framework="pt") as tensors:
        assert tensors.metadata()["format"] == "unspoken-packet"
        assert tensors.get_tensor("layers.0.keys").shape[0] == 1


def test_the_first_layer_is_given_out_before_the_last_is_sent(
    model: LocalModel, packet: bytes
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("rb") as stream:
        reader_has_layer = threading.Event()
        cut = len(packet) - 100

        def send() -> None:
            ours.sendall(packet[:cut])
            if reader_has_layer.wait(20):
                ours.sendall(packet[cut:])

        sender = threading.Thread(target=send)
        sender.start()
        layers = PacketReader(stream, key=KEY).layers(model)
        next(layers)
        reader_has_layer.set()
        assert len(list(layers)) == len(model.geometry.layers) - 1
        sender.join()


def test_two_packets_follow_each_other_on_one_stream(
    model: LocalModel, message: Message, packet: bytes
) -> None:
    stream = io.BytesIO(packet + written(message, codec="int8"))
    assert read_packet(stream, model, key=KEY).context == message.context
    assert read_packet(stream, model, key=KEY).context == message.context


def test_nothing_half_written_stays(
    tmp_path: Path, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "message.packet"
    write_packet(message, file, key=KEY)
    before = file.read_bytes()
    broken = replace(message, state=None)
    with pytest.raises(StateError, match="no state"):
        write_packet(broken, file, key=KEY)
    assert file.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == [file.name]


# -- where packets come from and go to


def test_a_path_may_be_a_str_or_a_path(
    tmp_path: Path, model: LocalModel, message: Message, packet: bytes
) -> None:
    """Files are named either way; bytes are the packet itself."""
    file = tmp_path / "message.packet"
    assert write_packet(message, str(file), key=KEY) == len(packet)
    assert file.read_bytes() == packet
    for source in (str(file), file, packet):
        assert read_packet(source, model, key=KEY).context == message.context
        with PacketReader(source, key=KEY) as reader:
            assert reader.manifest.sharer == message.sharer
    with pytest.raises(PacketError, match=f"{len(packet) - 1} bytes") as caught:
        read_packet(packet[:-1], model, key=KEY)
    assert caught.value.kind == "truncated"


def test_a_reader_leaves_a_stream_open_that_it_did_not_open(packet: bytes) -> None:
    stream = io.BytesIO(packet)
    with PacketReader(stream, key=KEY) as reader:
        assert reader.manifest.version == 1
    assert not stream.closed


def test_a_named_pipe_is_read_to_the_end_of_its_packet(
    tmp_path: Path, model: LocalModel, message: Message, packet: bytes
) -> None:
    """Its length is known to nobody, so nothing is held against it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    sender = threading.Thread(target=pipe.write_bytes, args=(packet,))
    sender.start()
    assert read_packet(pipe, model, key=KEY).context == message.context
    sender.join()


@pytest.mark.parametrize("thing", [None, 7, ["message.packet"], io.StringIO()])
def test_what_is_no_place_for_a_packet_is_refused(
    thing: Any, model: LocalModel, message: Message
) -> None:
    """Neither a path nor bytes nor a binary stream: named, with what would do."""
    for refused in (
        lambda: read_packet(thing, model, key=KEY),
        lambda: PacketReader(thing, key=KEY),
        lambda: write_packet(message, thing, key=KEY),
    ):
        with pytest.raises(InputError, match="a packet cannot be") as caught:
            refused()
        assert "a path as str or Path" in caught.value.expected
        assert caught.value.fix
    with pytest.raises(InputError, match="cannot be written to an object of type bytes"):
        write_packet(message, b"message.packet", key=KEY)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["nowhere", "", "null\0byte"])
def test_a_file_that_cannot_be_opened_is_named(
    path: str, tmp_path: Path, model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be opened") as caught:
        read_packet(path, model, key=KEY)
    assert caught.value.expected and caught.value.fix


def test_a_place_that_takes_no_file_is_named(
    tmp_path: Path, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such folder, a folder, a full disk: the error names the file, nothing is left."""
    with pytest.raises(InputError, match="there is no folder") as caught:
        write_packet(message, tmp_path / "nowhere" / "message.packet", key=KEY)
    assert str(tmp_path / "nowhere") in caught.value.found and "make the folder" in caught.value.fix
    with pytest.raises(InputError, match="it is a folder"):
        write_packet(message, tmp_path, key=KEY)

    def full(file: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr("unspoken.channels.storage.files.flush", full)
    with pytest.raises(InputError, match="No space left on device") as caught:
        write_packet(message, tmp_path / "message.packet", key=KEY)
    assert f".{os.getpid()}" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_codec_is_refused_with_the_known_ones(message: Message) -> None:
    with pytest.raises(InputError, match="no codec 'int2'") as caught:
        written(message, codec="int2")  # type: ignore[arg-type]
    assert caught.value.expected == "raw, int8 or int4"


# -- refusals


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


def test_a_deeply_nested_header_is_no_packet(model: LocalModel) -> None:
    deep = b'{"__metadata__":' + b"[" * 100_000
    assert refusal(struct.pack("<Q", len(deep)) + deep, model).kind == "format"


def test_a_raw_packet_needs_the_receivers_dtype(model: LocalModel, packet: bytes) -> None:
    with pytest.raises(GeometryMismatch, match="float32") as caught:
        read(packet, model.cast(torch.bfloat16))
    assert "int8" in caught.value.fix


@settings(max_examples=200, deadline=None)
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


# -- keys


def test_a_key_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)
    with pytest.raises(InputError, match="no key"):
        packet_key()
    file = tmp_path / "packet.key"
    file.write_bytes(b"0123456789abcdef\n")
    assert packet_key(file) == b"0123456789abcdef"
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(file))
    assert packet_key() == b"0123456789abcdef"
    monkeypatch.setenv(KEY_VARIABLE, "another key, long enough")
    assert packet_key() == b"another key, long enough"
    monkeypatch.setenv(KEY_VARIABLE, "short")
    with pytest.raises(InputError, match="5 bytes"):
        packet_key()
    assert packet_key(str(file)) == b"0123456789abcdef"
    for nowhere in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "", "null\0byte"):
        with pytest.raises(InputError, match="cannot be read"):
            packet_key(nowhere)


@pytest.mark.parametrize("file", [7, b"a key that is long enough"])
def test_a_key_file_is_named_by_a_path(file: Any) -> None:
    """A key given in its place is not shown to whoever reads the error."""
    with pytest.raises(InputError, match="the packet key's file is") as caught:
        packet_key(file)
    assert caught.value.expected == "a path as str or Path"
    assert "long enough" not in str(caught.value)


@pytest.mark.parametrize("key", [b"", b"short", "a str, however long it is"])
def test_a_key_that_protects_nothing_is_refused_at_both_ends(
    key: bytes, model: LocalModel, message: Message, packet: bytes
) -> None:
    """An empty or a short key would make a packet that only looks signed."""
    with pytest.raises(InputError, match="packet key is"):
        written(message, key)
    with pytest.raises(InputError, match="packet key is"):
        read(packet, model, key)
