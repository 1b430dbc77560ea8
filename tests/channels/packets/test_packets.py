"""Packets: whole and genuine, or refused with the reason, before anything is made of them."""

import errno
import io
import os
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_packets import KEY
from messages import message_of, receive
from packets import TEXT, read, written
from processes import LIMIT_S
from recoded import recode
from safetensors import safe_open

from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import InputError, PacketError, StateError
from unspoken.channels.kv.codec import CODECS, Codec
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message
from unspoken.channels.packets.packet import read_packet, write_packet
from unspoken.channels.packets.reader import PacketReader


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


def test_a_packet_says_how_many_hand_overs_a_state_came_through(
    model: LocalModel, message: Message
) -> None:
    """One follows from an approximate state alone."""
    assert message.state is not None
    for rough, hops in ((None, 0), (2, 1), (2, 3)):
        state = replace(message.state, approximate_from=rough, hops=hops)
        back = read(written(replace(message, state=state)), model).state
        assert back is not None and (back.approximate_from, back.hops) == (rough, hops)


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
            if reader_has_layer.wait(LIMIT_S):
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


@pytest.mark.skipif(os.name != "posix", reason="other systems have no modes")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_packet_is_for_its_owner_alone(tmp_path: Path, message: Message, umask: int) -> None:
    """Whatever the umask and whatever lay there before."""
    file = tmp_path / "message.packet"
    file.write_bytes(b"")
    file.chmod(0o644)
    before = os.umask(umask)
    try:
        write_packet(message, file, key=KEY)
    finally:
        os.umask(before)
    assert [one.stat().st_mode & 0o777 for one in tmp_path.iterdir()] == [0o600]


def test_a_message_that_no_packet_can_hold_is_refused(tmp_path: Path, message: Message) -> None:
    """Half a character has no bytes; the error can be printed."""
    (segment,) = message.segments
    half = replace(message, segments=(replace(segment, text="\ud800" + segment.text[1:]),))
    for bad in (half, replace(message, sharer="\ud800")):
        with pytest.raises(InputError, match="cannot be put in a packet") as caught:
            write_packet(bad, tmp_path / "message.packet", key=KEY)
        assert "surrogates" in caught.value.found and str(caught.value).encode()
    assert list(tmp_path.iterdir()) == []


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
    """Its length is known to nobody, so nothing is compared with it."""
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
