"""Keys and values in fewer bytes: bit for bit, or as 8- and 4-bit levels with scales.

Keys have a few channels that are large at every token, values have not; so keys share a scale per
channel over `GROUP` tokens, and values per token and head (KIVI, arXiv 2402.02750).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from unspoken.channels.errors import ChannelError
from unspoken.channels.kv.layer_state import LayerState

Codec = Literal["raw", "int8", "int4"]

CODECS: tuple[Codec, ...] = get_args(Codec)

GROUP = 32
"""Tokens whose keys share a scale per channel."""

LARGEST = 127


@dataclass(frozen=True, slots=True)
class Part:
    """One stored tensor.

    Attributes:
        name: What it holds of the layer.
        dtype: Element type.
        shape: Its shape.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


def layout(
    codec: Codec,
    kv_heads: int,
    rows: int,
    head_dim: int,
    dtype: torch.dtype,
    *,
    value_dim: int | None = None,
) -> tuple[Part, ...]:
    """The tensors that `encode` makes of one layer, known before any of them is there.

    Args:
        codec: The codec.
        kv_heads, rows, head_dim: Shape of keys; no tensor where there is no head.
        dtype: Element type of the state.
        value_dim: Size of one head's values; None where it is that of the keys.
    """
    if not kv_heads:
        return ()
    sizes = {"keys": head_dim, "values": head_dim if value_dim is None else value_dim}
    if codec == "raw":
        return tuple(Part(name, dtype, (kv_heads, rows, size)) for name, size in sizes.items())
    groups = -(-rows // GROUP)
    per_channel, per_token = (kv_heads, groups, head_dim), (kv_heads, rows)
    half = codec == "int4"
    stored_as, suffixes = (torch.uint8, ["scale", "low"]) if half else (torch.int8, ["scale"])
    parts: list[Part] = []
    for name, scales in (("keys", per_channel), ("values", per_token)):
        size = -(-sizes[name] // 2) if half else sizes[name]
        parts.append(Part(name, stored_as, (kv_heads, rows, size)))
        parts += (Part(f"{name}.{suffix}", torch.float16, scales) for suffix in suffixes)
    return tuple(parts)


def encode(codec: Codec, layer: LayerState) -> dict[str, Tensor]:
    """One layer's tensors as they are stored, in the order of `layout`, on the layer's device.

    Raises:
        ChannelError: Values that are not finite, or too large for the scales of a lossy codec.
    """
    if not layer.shape[0]:
        return {}
    if codec == "raw":
        return {"keys": layer.keys, "values": layer.values}
    parts = {}
    for name, tensor in (("keys", _grouped(layer.keys.float())), ("values", layer.values.float())):
        levels, scales = _quantise(codec, tensor)
        levels = _ungrouped(levels, layer.rows) if name == "keys" else levels
        parts[name] = _paired(levels) if codec == "int4" else levels
        parts |= {f"{name}.{suffix}": scale for suffix, scale in scales.items()}
    halves = [part.flatten() for part in parts.values() if part.dtype == torch.float16]
    if not bool(torch.isfinite(torch.cat(halves)).all()):
        raise ChannelError(
            f"the state holds values that {codec} cannot store",
            expected="finite values whose scales fit 16 bits",
            fix="use the codec raw",
        )
    return parts


def decode(
    codec: Codec,
    parts: Mapping[str, Tensor],
    head_dim: int,
    dtype: torch.dtype,
    *,
    value_dim: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Keys and values, (kv_heads, rows, size) each, in `dtype`; of raw the stored tensors."""
    if codec == "raw":
        return parts["keys"], parts["values"]
    levels = {
        name: (parts[name] if codec == "int8" else _unpaired(parts[name], size)).float()
        for name, size in (("keys", head_dim), ("values", value_dim or head_dim))
    }
    rows = levels["keys"].shape[1]
    keys = _ungrouped(_restored("keys", _grouped(levels["keys"]), parts), rows)
    return keys.to(dtype), _restored("values", levels["values"], parts).to(dtype)


def _quantise(codec: Codec, tensor: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Levels, and per row of dimension 2 a scale, and with int4 the lowest value."""
    if codec == "int8":
        scale = _scale(tensor.abs().amax(2, keepdim=True) / LARGEST)
        levels = (tensor / scale.float()).round_().clamp_(-LARGEST, LARGEST)
        return levels.to(torch.int8), {"scale": scale.squeeze(2)}
    low = tensor.amin(2, keepdim=True).half()
    scale = _scale((tensor.amax(2, keepdim=True) - low.float()) / 15)
    levels = ((tensor - low.float()) / scale.float()).round_().clamp_(0, 15)
    return levels.to(torch.uint8), {"scale": scale.squeeze(2), "low": low.squeeze(2)}


def _scale(step: Tensor) -> Tensor:
    return step.clamp_min(6e-8).half()


def _restored(name: str, levels: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
    restored = levels * parts[f"{name}.scale"].float().unsqueeze(2)
    low = parts.get(f"{name}.low")
    return restored if low is None else restored + low.float().unsqueeze(2)


def _grouped(tensor: Tensor) -> Tensor:
    """(heads, rows, dim) as (heads, groups, GROUP, dim); the last row fills the last group."""
    heads, rows, dim = tensor.shape
    missing = -rows % GROUP
    if missing:
        tensor = torch.cat([tensor, tensor[:, -1:].expand(-1, missing, -1)], dim=1)
    return tensor.reshape(heads, (rows + missing) // GROUP, GROUP, dim)


def _ungrouped(tensor: Tensor, rows: int) -> Tensor:
    return tensor.flatten(1, 2)[:, :rows]


def _paired(levels: Tensor) -> Tensor:
    """Two neighbouring channels' levels in one byte."""
    levels = torch.nn.functional.pad(levels, (0, levels.shape[2] % 2))
    return levels[..., ::2] | (levels[..., 1::2] << 4)


def _unpaired(pairs: Tensor, head_dim: int) -> Tensor:
    return torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(2)[..., :head_dim]
