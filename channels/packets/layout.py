"""Where a packet's tensors lie: its header, and what is stored of each layer."""

import json
from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor

from unspoken.channels.errors import PacketError
from unspoken.channels.kv.codec import Part, layout
from unspoken.channels.packets.manifest import DTYPES, PacketManifest
from unspoken.channels.storage.strict_json import parse_json

FORMAT = "unspoken-packet"

_FOLDED = "snapshots."
_SAFETENSORS = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
}


def header_of(manifest: PacketManifest, text: str, signature: str) -> bytes:
    """The header that goes with a manifest, to the byte."""
    entries: dict[str, object] = {
        "__metadata__": {"format": FORMAT, "manifest": text, "signature": signature}
    }
    start = 0
    for number, parts in enumerate(parts_of(manifest)):
        for part in parts:
            stop = start + part.nbytes
            entries[f"layers.{number}.{part.name}"] = {
                "dtype": _SAFETENSORS[part.dtype],
                "shape": part.shape,
                "data_offsets": (start, stop),
            }
            start = stop
    head = json.dumps(entries, separators=(",", ":")).encode()
    return head + b" " * (-len(head) % 8)


def metadata_of(head: bytes) -> tuple[str, str]:
    """The manifest and its signature, as text."""
    try:
        metadata = parse_json(head)["__metadata__"]
        kind, text, signature = (metadata[name] for name in ("format", "manifest", "signature"))
    except (ValueError, KeyError, TypeError) as error:
        raise PacketError(
            "this is no packet: its header has no manifest",
            kind="format",
            expected="a safetensors file that write_packet made",
        ) from error
    if kind != FORMAT or not isinstance(text, str) or not isinstance(signature, str):
        raise PacketError(
            f"this is no packet: its header says {str(kind)[:40]!a}",
            kind="format",
            expected=f"format {FORMAT!r}, a manifest and a signature",
        )
    return text, signature


def parts_of(manifest: PacketManifest) -> Iterator[tuple[Part, ...]]:
    """Per layer, what is stored of it."""
    dtype, tokens = DTYPES[manifest.dtype], len(manifest.context)
    rows = tokens - manifest.hidden_first
    folded = defaultdict(list)
    for one in manifest.folded:
        folded[one.layer].append(one)
    for number, layer in enumerate(manifest.layers):
        parts = list(
            layout(
                manifest.codec,
                layer.kv_heads,
                tokens - layer.first,
                layer.head_dim,
                dtype,
                value_dim=layer.value_dim,
            )
        )
        if number in manifest.hidden:
            parts.append(Part("hidden", dtype, (rows, manifest.hidden_size)))
        for at in manifest.snapshots:
            parts += (
                Part(folded_name(at, one.name), DTYPES[one.dtype], one.shape)
                for one in folded[number]
            )
        yield tuple(parts)


def folded_name(at: int, name: str) -> str:
    """What a tensor of a snapshot at a position is called."""
    return f"{_FOLDED}{at}.{name}"


def folded_place(name: str) -> tuple[int, str] | None:
    """The position and the part that `folded_name` made a name of; None for other names."""
    if not name.startswith(_FOLDED):
        return None
    at, _, part = name.removeprefix(_FOLDED).partition(".")
    return int(at), part


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes, as a view of host memory."""
    host = tensor.detach().to("cpu").contiguous()
    return host.reshape(-1).view(torch.uint8).numpy().data
