"""Packets: a message and its state as signed bytes, which a reader takes layer by layer.

A packet is one safetensors file. Its metadata hold a manifest (who made the state, the message's
tokens and turns, the shape of every layer, a digest of each layer's bytes) and an HMAC-SHA256 of
that manifest; its tensors follow layer by layer. So the manifest covers every byte, and each
layer is checked when it arrives, before anything is made of it.

::

    8 bytes   length of the header, little-endian
    header    JSON: __metadata__ {format, manifest, signature}, then tensors' places
    data      layer 0's tensors, layer 1's, …
"""

import struct
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3
from pydantic import ValidationError

from unspoken.channels.errors import InputError, StateError
from unspoken.channels.kv.codec import CODECS, Codec, encode
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message
from unspoken.channels.model import CausalModel
from unspoken.channels.packets.binding import Bind, binding_of
from unspoken.channels.packets.files import Readable, packet_target, save_whole
from unspoken.channels.packets.layout import bytes_of, folded_name, header_of
from unspoken.channels.packets.manifest import DTYPES, manifest_of
from unspoken.channels.packets.reader import PacketReader
from unspoken.channels.packets.signing import key_id, signature_of


def packet_chunks(
    message: Message, *, key: bytes | None, codec: Codec = "raw", bind: Bind | None = None
) -> Iterator[bytes | memoryview]:
    """A packet's bytes in order, tensors as views of host memory.

    Args:
        message: A message with its state.
        key: Signs the packet; None leaves it unsigned, for channels that nobody else can write to.
        codec: How keys and values are stored. Hidden states are stored as they are.
        bind: What the packet is for, by ``run``, ``receiver`` and ``expires``; a reader refuses it
            for anything else.

    Raises:
        InputError: An unknown codec, a key that protects nothing, something that a packet cannot
            be bound to, or words that have no UTF-8.
        StateError: The message has no state, or one that is not that of its whole context.
        PacketError: More snapshots than a packet has room for.
        ChannelError: Values that the codec cannot store.
    """
    if codec not in CODECS:
        raise InputError(
            f"there is no codec {codec!r}",
            expected=" or ".join([", ".join(CODECS[:-1]), CODECS[-1]]),
            fix="use int8 for a quarter of the bytes, raw for every bit",
        )
    bound = binding_of(bind, signed=key is not None)
    name = None if key is None else key_id(key)
    state = _whole_state(message)
    stored, digests = [], []
    for number, layer in enumerate(state.layers):
        tensors = encode(codec, layer)
        if number in state.hidden:
            tensors["hidden"] = state.hidden[number]
        for snapshot in state.snapshots:
            for part, folded in snapshot.layers.get(number, {}).items():
                tensors[folded_name(snapshot.at, part)] = folded
        views = [bytes_of(tensor) for tensor in tensors.values()]
        digest = blake3()
        for view in views:
            digest.update(view)
        stored.append(views)
        digests.append(digest.hexdigest())
    try:
        manifest = manifest_of(message, state, codec, digests, name, bound)
        text = manifest.to_json()
    except ValueError as error:  # pydantic's errors are ValueErrors
        raise InputError(
            f"the message of {message.sharer!a} cannot be put in a packet: {_first_problem(error)}",
            expected="a message as LocalModel.message makes it, its words in whole characters",
        ) from error
    head = header_of(manifest, text, signature_of(text, key))
    yield struct.pack("<Q", len(head)) + head
    for views in stored:
        yield from views


def _first_problem(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(map(str, [*problem["loc"], problem["msg"]]))


def _whole_state(message: Message) -> KVState:
    """The state of a message's whole context."""
    state = message.state
    if state is None or state.start != 0 or state.stop != len(message.context):
        held = "no state"
        if state is not None:
            held = f"the state of positions {state.start} to {state.stop}"
        raise StateError(
            f"the message of {message.sharer!r} has {held}",
            expected=f"the state of all its {len(message.context)} tokens",
            fix="publish the message with its state",
        )
    if state.dtype not in DTYPES.values():
        raise StateError(
            f"a state in {state.dtype} cannot be put in a packet",
            expected=f"one of {', '.join(DTYPES)}",
        )
    return state


def write_packet(
    message: Message,
    target: str | Path | BinaryIO,
    *,
    key: bytes | None,
    codec: Codec = "raw",
    bind: Bind | None = None,
) -> int:
    """Write a packet to a file or a stream; its length in bytes.

    A file appears whole or not at all, and only its owner can read it.

    Args:
        message: A message with its state.
        target: A path, whose folder exists, or a binary stream such as ``socket.makefile("wb")``.
        key: Signs the packet; None leaves it unsigned.
        codec: ``raw`` (bit for bit), ``int8`` or ``int4``.
        bind: What the packet is for: ``run`` (a name), ``receiver`` (an agent's name or a model's
            identity), ``expires`` (a datetime with a time zone, or seconds since 1970).

    Raises:
        InputError: A target that cannot be written to.
        InputError, StateError, ChannelError: See `packet_chunks`.
    """

    def write(stream: BinaryIO) -> int:
        total = 0
        for chunk in packet_chunks(message, key=key, codec=codec, bind=bind):
            stream.write(chunk)
            total += len(chunk)
        return total

    end = packet_target(target)
    return save_whole(end, write) if isinstance(end, Path) else write(end)


def read_packet(
    source: str | Path | bytes | Readable,
    receiver: CausalModel,
    *,
    key: bytes | None,
    run: str | None = None,
    agent: str | None = None,
    now: float | datetime | None = None,
) -> Message:
    """Read a packet: the message, with its state on the receiver's device.

    A state that was stored with int8 or int4 counts as approximate. A packet that is bound to a
    run or an agent is read for that one alone.

    Args:
        source: A path, the packet's bytes, or a binary stream, from which exactly the packet's
            bytes are taken.
        receiver: The model that will continue it.
        key: The key that signed the packet; None accepts an unsigned packet and no other.
        run: The run that it is read for; a packet that is not bound to it is refused.
        agent: Name of the agent that it is read for, likewise.
        now: The moment at which it must not have expired; this very moment if not given.

    Raises:
        PacketError: Truncated, tampered with, signed with another key, of another version, for
            another run or agent, expired, or malformed.
        IdentityMismatch, GeometryMismatch: Another model's.
        InputError: A file that cannot be opened, or something that no packet can be read from.
    """
    with PacketReader(source, key=key, run=run, agent=agent, now=now) as reader:
        return reader.message(receiver)
