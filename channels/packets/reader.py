"""Reading a packet from a stream: the manifest, then layer after layer, each checked at once."""

import hmac
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Self

import torch
from blake3 import blake3
from torch import Tensor

from unspoken.channels.errors import GeometryMismatch, PacketError
from unspoken.channels.kv.codec import Part, decode
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.snapshot import Snapshot
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message
from unspoken.channels.model import CausalModel
from unspoken.channels.packets.binding import check_binding, check_model
from unspoken.channels.packets.files import Readable, open_packet, reason_of
from unspoken.channels.packets.layout import bytes_of, header_of, metadata_of, parts_of
from unspoken.channels.packets.manifest import DTYPES, ENTRY, MAX_HEADER, PacketManifest
from unspoken.channels.packets.shapes import check_shapes, folded_of
from unspoken.channels.packets.signing import checked_manifest

PIECE = 2**20


class PacketReader:
    """Reads one packet from a stream: the manifest at once, then layer after layer as they arrive.

    Nothing is allocated for the state until the signature, the manifest and the receiver's own
    shape agree.

    Used in a ``with``, it closes the file that it opened; a stream is left to whoever opened it.

    Args:
        source: A path, the packet's bytes, or a stream open for reading in binary, such as
            ``socket.makefile("rb")``.
        key: The key that signed the packet; None accepts an unsigned packet and no other.
        size: Bytes of the packet where they are known; of a file and of bytes they are.
        run, agent: What it is read for; a packet that is not bound to them is refused, and so is
            one that is bound where they are not given.
        now: The moment at which it must not have expired; this very moment if not given.

    Attributes:
        manifest: What the packet says of itself, already vouched for.

    Raises:
        InputError: A file that cannot be opened, or something that no packet can be read from.
        PacketError: naming what is wrong; its `kind` is one of ``format``, ``version``,
            ``truncated``, ``size``, ``key``, ``unsigned``, ``tampered``, ``bound``, ``expired``
            and ``shape``.
    """

    manifest: PacketManifest

    def __init__(
        self,
        source: str | Path | bytes | Readable,
        *,
        key: bytes | None,
        size: int | None = None,
        run: str | None = None,
        agent: str | None = None,
        now: float | datetime | None = None,
    ) -> None:
        opened = open_packet(source)
        self._stream, self._file = opened.stream, opened.file
        try:
            self._begin(key, opened.size if size is None else size)
            check_binding(self.manifest.bind, run=run, agent=agent, now=now)
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
        text, signature = metadata_of(head)
        self.manifest = checked_manifest(text, signature, key)
        # A short manifest may tell of millions of tensors: they are counted before they are listed.
        few = self.manifest.folds * ENTRY <= len(head)
        if not few or header_of(self.manifest, text, signature) != head:
            raise PacketError(
                "the packet's header places other tensors than its manifest says",
                kind="shape",
                expected="the tensors that follow from the manifest, in order",
                fix="have the sharer write the packet again",
            )
        self._data = sum(part.nbytes for parts in parts_of(self.manifest) for part in parts)
        total = 8 + len(head) + self._data
        if size is not None and size != total:
            kind, fix = "size", "write one packet to a file, and nothing after it"
            if size < total:
                kind, fix = "truncated", "send it again"
            raise PacketError(
                f"the packet has {size} bytes",
                kind=kind,
                expected=f"{total}, as its manifest says",
                fix=fix,
            )

    def _head(self, size: int | None) -> bytes:
        (length,) = struct.unpack("<Q", self._exactly(8, "its first 8 bytes"))
        most = MAX_HEADER if size is None else min(MAX_HEADER, size - 8)
        if length > most:
            kind, why, fix = "truncated", "which it has", "send it again"
            if length > MAX_HEADER:
                why = "as a packet's or any safetensors file's first 8 bytes give it"
                kind, fix = "format", "check that this is a packet"
            raise PacketError(
                f"the packet announces a header of {length} bytes",
                kind=kind,
                expected=f"at most {most}, {why}",
                fix=fix,
            )
        return self._exactly(length, "its header")

    def _exactly(self, count: int, what: str) -> bytes:
        """`count` bytes, in pieces, so that a false length costs no memory."""
        read = bytearray()
        while len(read) < count:
            with _explained(what):
                piece = self._stream.read(min(PIECE, count - len(read)))
            if not piece:
                raise _ended(what, len(read), count)
            read += piece
        return bytes(read)

    def check(self, receiver: CausalModel) -> None:
        """Refuse a packet that is not of the receiver's own model and shape.

        Raises:
            IdentityMismatch, GeometryMismatch: naming what differs.
            PacketError: More tokens than the receiver's context holds, or a token or a layer that
                it cannot read.
        """
        manifest = self.manifest
        check_model(manifest.bind, receiver.identity)
        receiver.identity.require(manifest.identity, f"the packet of {manifest.sharer!r}")
        longest = receiver.geometry.max_positions
        if len(manifest.context) > longest:
            raise PacketError(
                f"the packet holds {len(manifest.context)} tokens",
                kind="size",
                expected=f"at most {longest}, the receiver's context",
                fix="share less text, or use a model with a longer context",
            )
        check_shapes(manifest, receiver)
        if manifest.codec == "raw" and DTYPES[manifest.dtype] != receiver.dtype:
            raise GeometryMismatch(
                f"the packet holds a raw state in {manifest.dtype}",
                expected=f"{str(receiver.dtype).removeprefix('torch.')}, as the receiver computes",
                fix="load both models with one dtype, or send it with the codec int8",
            )
        self._check_tokens(receiver)

    def _check_tokens(self, receiver: CausalModel) -> None:
        """Refuse ids without a meaning, and layers that lack rows which the receiver looks at."""
        manifest, stop = self.manifest, len(self.manifest.context)
        known = getattr(receiver, "vocabulary", None)  # models of other engines need not say
        if known is not None and max(manifest.context) >= known:
            raise PacketError(
                f"the packet holds the token {max(manifest.context)}",
                kind="shape",
                expected=f"tokens below {known}, as the receiver's model has",
            )
        shapes = zip(manifest.layers, receiver.geometry.layers, strict=True)
        for number, (stored, layer) in enumerate(shapes):
            needed = 0 if layer.window is None else max(0, stop - layer.window + 1)
            if stored.first > needed:
                raise PacketError(
                    f"layer {number} of the packet begins at position {stored.first}",
                    kind="shape",
                    expected=f"position {needed} or before, from where on the receiver looks",
                    fix="have the sharer write it again",
                )

    def layers(self, receiver: CausalModel) -> Iterator[tuple[LayerState, Tensor | None]]:
        """Layers as they arrive, on the receiver's device, each with its input where that is sent.

        Every layer's bytes are checked before it is given out. Raw tensors are read into place;
        nothing is held twice.

        Raises:
            IdentityMismatch, GeometryMismatch: See `check`.
            PacketError: The stream ends early, or a layer is not what was signed.
        """
        for layer, hidden, _ in self._read(receiver):
            yield layer, hidden

    def _read(
        self, receiver: CausalModel
    ) -> Iterator[tuple[LayerState, Tensor | None, dict[int, dict[str, Tensor]]]]:
        """The same, each with what it has in snapshots, by their positions."""
        self.check(receiver)
        manifest, device = self.manifest, receiver.device
        layers = zip(parts_of(manifest), manifest.layers, strict=True)
        for number, (parts, shape) in enumerate(layers):
            tensors = self._tensors(number, parts)
            hidden = tensors.get("hidden")
            if shape.kv_heads:
                rows = decode(
                    manifest.codec,
                    tensors,
                    shape.head_dim,
                    receiver.dtype,
                    value_dim=shape.value_dim,
                )
                _require_finite(number, rows)
                layer = LayerState(rows[0].to(device), rows[1].to(device), shape.first)
            else:
                count = len(manifest.context) - shape.first
                layer = LayerState.empty(count, shape.first, receiver.dtype, device)
            folded = folded_of(tensors, device)
            aside = [tensor for parts in folded.values() for tensor in parts.values()]
            if hidden is not None:
                hidden = hidden.to(device, receiver.dtype)
                aside.append(hidden)
            _require_finite(number, aside)
            yield layer, hidden, folded

    def _tensors(self, number: int, parts: Sequence[Part]) -> Mapping[str, Tensor]:
        digest = blake3()
        tensors = {}
        for part in parts:
            tensor = torch.empty(part.shape, dtype=part.dtype)
            room = bytes_of(tensor)
            done = 0
            while done < len(room):
                with _explained(f"layer {number}"):
                    count = self._stream.readinto(room[done : done + PIECE])
                if not count:
                    raise _ended(f"layer {number}", done, len(room))
                done += count
            digest.update(room)
            tensors[part.name] = tensor
        if not hmac.compare_digest(digest.hexdigest(), self.manifest.digests[number]):
            raise PacketError(
                f"the bytes of layer {number} do not match the manifest",
                kind="tampered",
                expected=f"BLAKE3 {self.manifest.digests[number][:16]}",
                fix="send the packet again; if that fails too, somebody changes it on its way",
            )
        return tensors

    def message(self, receiver: CausalModel) -> Message:
        """The whole message, with its state on the receiver's device.

        Raises:
            IdentityMismatch, GeometryMismatch, PacketError: See `layers`.
        """
        manifest = self.manifest
        layers, hidden = [], {}
        snapshots: dict[int, dict[int, dict[str, Tensor]]] = {at: {} for at in manifest.snapshots}
        for number, (layer, entry, folded) in enumerate(self._read(receiver)):
            layers.append(layer)
            for at, folds in folded.items():
                snapshots[at] |= {number: folds} if folds else {}
            if entry is not None:
                hidden[number] = entry
        rough = manifest.approximate_from if manifest.codec == "raw" else 0
        state = KVState(
            layers=tuple(layers),
            start=0,
            stop=len(manifest.context),
            identity=receiver.identity,
            approximate_from=rough,
            hops=0 if rough is None else max(manifest.hops, 1),
            hidden=MappingProxyType(hidden),
            snapshots=tuple(Snapshot(at, folds) for at, folds in snapshots.items()),
        )
        return manifest.message(state)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """A stream that breaks off is a packet that ends."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a stream that is closed
        raise PacketError(
            f"the packet breaks off within {what}: {reason_of(error)}",
            kind="truncated",
            expected="a stream that stays open to the packet's end",
            fix="send it again",
        ) from error


def _require_finite(number: int, tensors: Sequence[Tensor]) -> None:
    """Refuse a layer with a value that would make every later one meaningless."""
    for tensor in tensors:
        # A sum is finite only where every term is, and costs a tenth of looking at each.
        if bool(tensor.sum(dtype=torch.float32).isfinite()):
            continue
        if not bool(tensor.isfinite().all()):
            raise PacketError(
                f"layer {number} of the packet holds values that are not finite",
                kind="shape",
                expected="finite keys and values",
                fix="have the sharer compute it again",
            )


def _ended(what: str, found: int, wanted: int) -> PacketError:
    return PacketError(
        f"the packet ends within {what}",
        kind="truncated",
        expected=f"{wanted} bytes there, {found} came",
        fix="send it again",
    )
