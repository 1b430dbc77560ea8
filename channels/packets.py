"""Packets: a message and its state as bytes, signed, laid out so that a reader can begin with the first layer.

A packet is one safetensors file. Its metadata hold a manifest (who made the state, the message's tokens and turns, the
shape of every layer, a digest of each layer's bytes) and an HMAC-SHA256 of that manifest; its tensors follow layer by
layer. So the manifest vouches for every byte, and each layer is checked when it arrives, before anything is made of it.

::

    8 bytes   length of the header, little-endian
    header    JSON: __metadata__ {format, manifest, signature}, then name, dtype, shape and place of each tensor
    data      layer 0's tensors, layer 1's, …
"""

import hashlib
import hmac
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Self

import torch
from blake3 import blake3
from pydantic import ValidationError
from torch import Tensor

from unspoken.channels.base import CausalModel
from unspoken.channels.codec import CODECS, Codec, Part, decode, encode, layout
from unspoken.channels.errors import GeometryMismatch, InputError, PacketError, StateError
from unspoken.channels.geometry import LayerGeometry
from unspoken.channels.message import Message
from unspoken.channels.packet_files import (
    Readable,
    open_packet,
    packet_target,
    save_whole,
)
from unspoken.channels.packet_manifest import (
    DTYPES,
    VERSION,
    LayerShape,
    PacketManifest,
    manifest_of,
)
from unspoken.channels.state import KVState, LayerState

__all__ = [
    "KEY_FILE_VARIABLE",
    "KEY_VARIABLE",
    "PacketReader",
    "packet_chunks",
    "packet_key",
    "read_packet",
    "write_packet",
]

KEY_VARIABLE = "UNSPOKEN_PACKET_KEY"
KEY_FILE_VARIABLE = "UNSPOKEN_PACKET_KEY_FILE"
KEY_BYTES = 16

FORMAT = "unspoken-packet"
MAX_HEADER = 64 * 2**20
PIECE = 2**20

_SAFETENSORS = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def packet_key(file: str | Path | None = None) -> bytes:
    """The key that signs packets, without white space at its ends.

    It is in `file`, else in ``$UNSPOKEN_PACKET_KEY``, else in the file that ``$UNSPOKEN_PACKET_KEY_FILE`` names.

    Raises:
        InputError: No key, one of fewer than 16 bytes, or a file that is no path.
    """
    if file is not None and not isinstance(file, str | Path):
        raise InputError(
            f"the packet key's file is an object of type {type(file).__name__}",
            expected="a path as str or Path",
            fix="give a key that you have as bytes to write_packet and read_packet themselves",
        )
    given = os.environ.get(KEY_VARIABLE)
    named = os.environ.get(KEY_FILE_VARIABLE)
    fix = "make one: openssl rand -hex 32 > packet.key, and keep it where only you can read it"
    if file is None and given is None and named is None:
        raise InputError(
            "there is no key to sign packets with",
            expected=f"a key file, or ${KEY_VARIABLE}, or ${KEY_FILE_VARIABLE}",
            fix=fix,
        )
    if file is None and given is not None:
        key, where = given.encode().strip(), f"${KEY_VARIABLE}"
    else:
        path = Path((named or "") if file is None else file).expanduser()
        where = str(path)
        try:
            key = path.read_bytes().strip()
        except (OSError, ValueError) as error:  # ValueError: a path with a null byte
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"the packet key {where!r} cannot be read: {reason}",
                expected="a file with the key",
                fix=fix,
            ) from error
    if len(key) < KEY_BYTES:
        raise InputError(
            f"the packet key in {where} has {len(key)} bytes",
            expected=f"at least {KEY_BYTES}, not guessable",
            fix=fix,
        )
    return key


# -- writing


def packet_chunks(
    message: Message, *, key: bytes | None, codec: Codec = "raw"
) -> Iterator[bytes | memoryview]:
    """A packet's bytes in order, tensors as views of host memory.

    Args:
        message: A message with its state.
        key: Signs the packet; None leaves it unsigned, for channels that nobody else can write to.
        codec: How keys and values are stored. Hidden states are stored as they are.

    Raises:
        InputError: An unknown codec, or a key that protects nothing.
        StateError: The message has no state, or one that was trimmed or does not start its context.
        ChannelError: Values that the codec cannot store.
    """
    if codec not in CODECS:
        raise InputError(
            f"there is no codec {codec!r}",
            expected=" or ".join([", ".join(CODECS[:-1]), CODECS[-1]]),
            fix="use int8 for a quarter of the bytes, raw for every bit",
        )
    state = message.state
    if state is None or state.start != 0 or state.stop != len(message.context):
        raise StateError(
            f"the message of {message.sharer!r} has "
            + (
                "no state"
                if state is None
                else f"the state of positions {state.start} to {state.stop}"
            ),
            expected=f"the state of all its {len(message.context)} tokens",
            fix="publish the message with its state",
        )
    if state.dtype not in DTYPES.values():
        raise StateError(
            f"a state in {state.dtype} cannot be put in a packet",
            expected=f"one of {', '.join(DTYPES)}",
        )
    stored, digests = [], []
    for number, layer in enumerate(state.layers):
        tensors = encode(codec, layer)
        if number in state.hidden:
            tensors["hidden"] = state.hidden[number]
        views = [_bytes_of(tensor) for tensor in tensors.values()]
        digest = blake3()
        for view in views:
            digest.update(view)
        stored.append(views)
        digests.append(digest.hexdigest())
    manifest = manifest_of(message, state, codec, digests, None if key is None else _key_id(key))
    text = manifest.model_dump_json()
    head = _header(manifest, text, _signature(text, key))
    yield struct.pack("<Q", len(head)) + head
    for views in stored:
        yield from views


def write_packet(
    message: Message, target: str | Path | BinaryIO, *, key: bytes | None, codec: Codec = "raw"
) -> int:
    """Write a packet to a file or a stream; its length in bytes. A file appears whole or not at all.

    Args:
        message: A message with its state.
        target: A path, whose folder exists, or a binary stream such as ``socket.makefile("wb")``.
        key: Signs the packet; None leaves it unsigned.
        codec: ``raw`` (bit for bit), ``int8`` or ``int4``.

    Raises:
        InputError: A target that cannot be written to.
        InputError, StateError, ChannelError: See `packet_chunks`.
    """

    def write(stream: BinaryIO) -> int:
        total = 0
        for chunk in packet_chunks(message, key=key, codec=codec):
            stream.write(chunk)
            total += len(chunk)
        return total

    end = packet_target(target)
    return save_whole(end, write) if isinstance(end, Path) else write(end)


def _bytes_of(tensor: Tensor) -> memoryview:
    host = tensor.detach().to("cpu").contiguous()
    return host.reshape(-1).view(torch.uint8).numpy().data


def _signature(manifest: str, key: bytes | None) -> str:
    if key is None:
        return ""
    return hmac.new(key, b"unspoken packet\0" + manifest.encode(), hashlib.sha256).hexdigest()


def _key_id(key: object) -> str:
    """What tells keys apart without giving them away."""
    if not isinstance(key, bytes) or len(key) < KEY_BYTES:
        found = f"{len(key)} bytes" if isinstance(key, bytes) else f"a {type(key).__name__}"
        raise InputError(
            f"the packet key is {found}",
            expected=f"at least {KEY_BYTES} bytes, not guessable, or None for an unsigned packet",
            fix="take it from packet_key()",
        )
    return hmac.new(key, b"unspoken packet key id", hashlib.sha256).hexdigest()[:16]


def _header(manifest: PacketManifest, text: str, signature: str) -> bytes:
    """The header that goes with a manifest, to the byte."""
    entries: dict[str, object] = {
        "__metadata__": {"format": FORMAT, "manifest": text, "signature": signature}
    }
    at = 0
    for number, parts in enumerate(_parts(manifest)):
        for part in parts:
            entries[f"layers.{number}.{part.name}"] = {
                "dtype": _SAFETENSORS[part.dtype],
                "shape": part.shape,
                "data_offsets": (at, at := at + part.nbytes),
            }
    head = json.dumps(entries, separators=(",", ":")).encode()
    return head + b" " * (-len(head) % 8)


def _parts(manifest: PacketManifest) -> Iterator[tuple[Part, ...]]:
    """Per layer, what is stored of it."""
    dtype, tokens = DTYPES[manifest.dtype], len(manifest.context)
    rows = tokens - manifest.hidden_first
    for number, layer in enumerate(manifest.layers):
        parts = layout(manifest.codec, layer.kv_heads, tokens - layer.first, layer.head_dim, dtype)
        if number in manifest.hidden:
            parts = (*parts, Part("hidden", dtype, (rows, manifest.hidden_size)))
        yield parts


# -- reading


class PacketReader:
    """Reads one packet from a stream: the manifest at once, then layer after layer as they arrive.

    Nothing is allocated for the state until the signature, the manifest and the receiver's own shape agree.

    Used in a ``with``, it closes the file that it opened; a stream is left to whoever opened it.

    Args:
        source: A path, the packet's bytes, or a stream open for reading in binary, such as ``socket.makefile("rb")``.
        key: The key that signed the packet; None accepts an unsigned packet and no other.
        size: Bytes of the packet where they are known; of a file and of bytes they are.

    Attributes:
        manifest: What the packet says of itself, already vouched for.

    Raises:
        InputError: A file that cannot be opened, or something that no packet can be read from.
        PacketError: naming what is wrong; its `kind` is one of ``format``, ``version``, ``truncated``, ``size``,
            ``key``, ``unsigned``, ``tampered`` and ``shape``.
    """

    manifest: PacketManifest

    def __init__(
        self, source: str | Path | bytes | Readable, *, key: bytes | None, size: int | None = None
    ) -> None:
        opened = open_packet(source)
        self._stream, self._file = opened.stream, opened.file
        try:
            self._begin(key, opened.size if size is None else size)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file that it opened, if it opened one."""
        if self._file is not None:
            self._file.close()

    def _begin(self, key: bytes | None, size: int | None) -> None:
        """Read the manifest, and hold what surrounds it against it."""
        head = self._head(size)
        text, signature = _metadata(head)
        self.manifest = _checked(text, signature, key)
        if _header(self.manifest, text, signature) != head:
            raise PacketError(
                "the packet's header places other tensors than its manifest says",
                kind="shape",
                expected="the tensors that follow from the manifest, in order",
                fix="have the sharer write the packet again",
            )
        self._data = sum(part.nbytes for parts in _parts(self.manifest) for part in parts)
        total = 8 + len(head) + self._data
        if size is not None and size != total:
            raise PacketError(
                f"the packet has {size} bytes",
                kind="truncated" if size < total else "size",
                expected=f"{total}, as its manifest says",
                fix="send it again"
                if size < total
                else "write one packet to a file, and nothing after it",
            )

    def _head(self, size: int | None) -> bytes:
        (length,) = struct.unpack("<Q", self._exactly(8, "its first 8 bytes"))
        most = MAX_HEADER if size is None else min(MAX_HEADER, size - 8)
        if length > most:
            big = length > MAX_HEADER
            raise PacketError(
                f"the packet announces a header of {length} bytes",
                kind="format" if big else "truncated",
                expected=f"at most {most}"
                + (
                    ", as a packet's or any safetensors file's first 8 bytes give it"
                    if big
                    else ", which it has"
                ),
                fix="check that this is a packet" if big else "send it again",
            )
        return self._exactly(length, "its header")

    def _exactly(self, count: int, what: str) -> bytes:
        """`count` bytes, in pieces, so that a false length costs no memory."""
        found = bytearray()
        while len(found) < count:
            piece = self._stream.read(min(PIECE, count - len(found)))
            if not piece:
                raise _ended(what, len(found), count)
            found += piece
        return bytes(found)

    def check(self, receiver: CausalModel) -> None:
        """Refuse a packet that is not of the receiver's own model and shape.

        Raises:
            IdentityMismatch, GeometryMismatch: naming what differs.
            PacketError: More tokens than the receiver's context holds.
        """
        manifest = self.manifest
        receiver.identity.require(manifest.identity, f"the packet of {manifest.sharer!r}")
        longest = receiver.geometry.max_positions
        if len(manifest.context) > longest:
            raise PacketError(
                f"the packet holds {len(manifest.context)} tokens",
                kind="size",
                expected=f"at most {longest}, the receiver's context",
                fix="share less text, or use a model with a longer context",
            )
        found = [(layer.kv_heads, layer.head_dim) for layer in manifest.layers]
        wanted = [(layer.kv_heads, layer.head_dim) for layer in receiver.geometry.layers]
        if found != wanted or (
            manifest.hidden and manifest.hidden_size != receiver.geometry.hidden_size
        ):
            raise GeometryMismatch(
                f"the packet holds {_described(manifest.layers)}",
                expected=f"{_described(receiver.geometry.layers)}, as the receiver has",
                fix="have the sharer write it with the receiver's model",
            )
        if manifest.codec == "raw" and DTYPES[manifest.dtype] != receiver.dtype:
            raise GeometryMismatch(
                f"the packet holds a raw state in {manifest.dtype}",
                expected=f"{str(receiver.dtype).removeprefix('torch.')}, as the receiver computes",
                fix="load both models with one dtype, or send it with the codec int8",
            )

    def layers(self, receiver: CausalModel) -> Iterator[tuple[LayerState, Tensor | None]]:
        """Layer after layer as it arrives, on the receiver's device, each with its input where that is sent.

        Every layer's bytes are checked before it is given out. Raw tensors are read into place; nothing is held twice.

        Raises:
            IdentityMismatch, GeometryMismatch: See `check`.
            PacketError: The stream ends early, or a layer is not what was signed.
        """
        self.check(receiver)
        manifest = self.manifest
        for number, (parts, shape) in enumerate(
            zip(_parts(manifest), manifest.layers, strict=True)
        ):
            tensors = self._tensors(number, parts)
            keys, values = decode(manifest.codec, tensors, shape.head_dim, receiver.dtype)
            hidden = tensors.get("hidden")
            yield (
                LayerState(keys.to(receiver.device), values.to(receiver.device), shape.first),
                None if hidden is None else hidden.to(receiver.device, receiver.dtype),
            )

    def _tensors(self, number: int, parts: Sequence[Part]) -> Mapping[str, Tensor]:
        digest = blake3()
        tensors = {}
        for part in parts:
            tensor = torch.empty(part.shape, dtype=part.dtype)
            room = _bytes_of(tensor)
            done = 0
            while done < len(room):
                count = self._stream.readinto(room[done : done + PIECE])
                if not count:
                    raise _ended(f"layer {number}", done, len(room))
                done += count
            digest.update(room)
            tensors[part.name] = tensor
        if not hmac.compare_digest(digest.hexdigest(), self.manifest.digests[number]):
            raise PacketError(
                f"the bytes of layer {number} are not those that the manifest vouches for",
                kind="tampered",
                expected=f"BLAKE3 {self.manifest.digests[number][:16]}",
                fix="send the packet again; if it happens again, somebody changes it on its way",
            )
        return tensors

    def message(self, receiver: CausalModel) -> Message:
        """The whole message, with its state on the receiver's device.

        Raises:
            IdentityMismatch, GeometryMismatch, PacketError: See `layers`.
        """
        manifest = self.manifest
        layers, hidden = [], {}
        for number, (layer, entry) in enumerate(self.layers(receiver)):
            layers.append(layer)
            if entry is not None:
                hidden[number] = entry
        rough = manifest.approximate_from if manifest.codec == "raw" else 0
        state = KVState(
            tuple(layers),
            0,
            len(manifest.context),
            receiver.identity,
            rough,
            MappingProxyType(hidden),
        )
        return manifest.message(state)


def read_packet(
    source: str | Path | bytes | Readable, receiver: CausalModel, *, key: bytes | None
) -> Message:
    """Read a packet: the message, with its state on the receiver's device.

    A state that was stored with int8 or int4 counts as approximate.

    Args:
        source: A path, the packet's bytes, or a binary stream, from which exactly the packet's bytes are taken.
        receiver: The model that will continue it.
        key: The key that signed the packet; None accepts an unsigned packet and no other.

    Raises:
        PacketError: Truncated, tampered with, signed with another key, of another version, or malformed.
        IdentityMismatch, GeometryMismatch: Another model's.
        InputError: A file that cannot be opened, or something that no packet can be read from.
    """
    with PacketReader(source, key=key) as reader:
        return reader.message(receiver)


def _metadata(head: bytes) -> tuple[str, str]:
    """The manifest and its signature, as text."""
    try:
        found = json.loads(head)["__metadata__"]
        kind, text, signature = found["format"], found["manifest"], found["signature"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PacketError(
            "this is no packet: its header has no manifest",
            kind="format",
            expected="a safetensors file that write_packet made",
        ) from error
    if kind != FORMAT or not isinstance(text, str) or not isinstance(signature, str):
        raise PacketError(
            f"this is no packet: its header says {str(kind)[:40]!r}",
            kind="format",
            expected=f"format {FORMAT!r}, a manifest and a signature",
        )
    return text, signature


def _checked(text: str, signature: str, key: bytes | None) -> PacketManifest:
    """The manifest, once its version, its key and its signature are right."""
    expected_key = None if key is None else _key_id(key)
    try:
        raw = json.loads(text)
        version, signed_by = raw["version"], raw["key"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PacketError(
            "the packet's manifest is not JSON with a version and a key",
            kind="format",
            expected="a manifest that write_packet made",
        ) from error
    if version != VERSION:
        raise PacketError(
            f"the packet is of version {str(version)[:20]}",
            kind="version",
            expected=f"version {VERSION}",
            fix="run the same version of unspoken at both ends",
        )
    if key is None and signed_by is not None:
        raise PacketError(
            f"the packet is signed with the key {str(signed_by)[:16]}, and no key was given",
            kind="key",
            expected="the key that signed it",
            fix=f"set {KEY_VARIABLE} or {KEY_FILE_VARIABLE}, or pass the key",
        )
    if key is not None and signed_by is None:
        raise PacketError(
            "the packet is unsigned",
            kind="unsigned",
            expected="a packet signed with your key",
            fix="have it signed; key=None accepts unsigned packets, where nobody else can write to the channel",
        )
    if key is not None and signed_by != expected_key:
        raise PacketError(
            f"the packet is signed with the key {str(signed_by)[:16]}",
            kind="key",
            expected=f"the key {expected_key}",
            fix="give both ends the same key",
        )
    if not hmac.compare_digest(signature.encode(), _signature(text, key).encode()):
        raise PacketError(
            "the packet's manifest is not what was signed",
            kind="tampered",
            expected="an unchanged manifest" if key else "no signature, as the manifest says",
            fix="do not use it; have the sharer send it again",
        )
    try:
        return PacketManifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PacketError(
            f"the packet's manifest is wrong at {where or 'its top'}: {first['msg']}",
            kind="shape",
            expected="a manifest that write_packet made",
        ) from error


def _ended(what: str, found: int, wanted: int) -> PacketError:
    return PacketError(
        f"the packet ends within {what}",
        kind="truncated",
        expected=f"{wanted} bytes there, {found} came",
        fix="send it again",
    )


def _described(layers: Sequence[LayerShape] | Sequence[LayerGeometry]) -> str:
    shapes = sorted({(layer.kv_heads, layer.head_dim) for layer in layers})
    return f"{len(layers)} layers of " + ", ".join(f"{heads} x {dim}" for heads, dim in shapes[:4])
