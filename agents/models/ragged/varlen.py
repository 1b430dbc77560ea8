"""Causal attention of many segments at once, each over keys of its own: no padding, no mask."""

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)
_LARGEST_HEAD = 256
_AMPERE = 8
"""Major compute capability from which on FlashAttention runs."""


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    cu_q: Tensor,
    cu_k: Tensor,
    max_q: int,
    max_k: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of packed segments, causal within each; nothing waits for the device.

    Segment i has the queries ``cu_q[i]`` … ``cu_q[i + 1] - 1`` and the keys ``cu_k[i]`` …
    ``cu_k[i + 1] - 1``. Its queries are the last of its tokens: the last query sees every key, the
    one before it all but the last. A prefill from position 0 has as many keys as queries, a decoded
    row one query. A segment of no queries is allowed, as a bucket's padding is.

    CUDA devices compute it by FlashAttention where `flash_serves` says so, all others by two
    products of matrices around a softmax in float32.

    Args:
        query: (tokens, heads, head_dim).
        key: (rows, kv_heads, head_dim); each of its heads serves ``heads / kv_heads`` queries.
        value: As `key`.
        cu_q: Where segments begin, and the number of tokens; (segments + 1,) int32 on the device.
        cu_k: The same of rows; each segment has at least as many rows as tokens.
        max_q: Most tokens of a segment, or more.
        max_k: Most rows of a segment, or more.
        scale: Factor of the scores.
        window: A query sees the last `window` rows up to its own; None for all of them.
        softcap: Scores s become ``softcap * tanh(s / softcap)``; None for s.

    Returns:
        (tokens, heads, head_dim), in the query's dtype.
    """
    flash = _flash(query.device)
    if flash is not None and flash_serves(query, value, softcap):
        near = -1 if window is None or window >= max_k else window - 1
        output: Tensor = flash(
            query,
            key,
            value,
            cu_q,
            cu_k,
            max_q,
            max_k,
            scale=scale,
            window_size=(near, 0),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output
    return _by_products(
        query,
        key,
        value,
        queries=_Segments(cu_q, max_q),
        keys=_Segments(cu_k, max_k),
        scale=scale,
        window=window,
        softcap=softcap,
    )


def has_flash(query: Tensor, value: Tensor, softcap: float | None = None) -> bool:
    """Whether `attend_packed` computes this by FlashAttention."""
    return flash_serves(query, value, softcap) and _flash(query.device) is not None


def flash_serves(query: Tensor, value: Tensor, softcap: float | None = None) -> bool:
    """Whether FlashAttention can, where there is one: two bytes an element, heads of up to 256."""
    size = query.shape[-1]
    heads = size % 8 == 0 and size <= _LARGEST_HEAD and size == value.shape[-1]
    return heads and query.dtype in _HALF and softcap is None


@cache
def _flash(device: torch.device) -> Callable[..., Any] | None:
    """torch's variable-length attention where a device and this torch have it."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    if torch.cuda.get_device_capability(device)[0] < _AMPERE:
        return None
    return _varlen_attn()


def _varlen_attn() -> Callable[..., Any] | None:
    """`torch.nn.attention.varlen.varlen_attn`, unless it is missing or lacks what is asked of it.

    The first torch that has it takes no window and no grouped heads.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    asked = {"scale", "window_size", "enable_gqa"}
    return varlen_attn if asked <= set(signature(varlen_attn).parameters) else None


class _Segments:
    """Where packed tokens stand in a padded tensor, found on the device alone.

    Args:
        cu: Where segments begin, and the number of tokens, (segments + 1,).
        longest: Most tokens of a segment, or more.

    Attributes:
        lengths: Tokens of each segment, (segments,).
    """

    def __init__(self, cu: Tensor, longest: int) -> None:
        self.cu, self.longest = cu.long(), longest
        self.lengths = self.cu.diff()

    def padded(self, packed: Tensor) -> Tensor:
        """(tokens, …) as (segments, longest, …); what pads a segment is some other token."""
        columns = torch.arange(self.longest, device=packed.device)
        at = self.cu[:-1, None] + columns
        return packed[at.clamp(max=packed.shape[0] - 1)]

    def packed(self, padded: Tensor, tokens: int) -> Tensor:
        """The way back: (segments, longest, …) as (tokens, …)."""
        every = torch.arange(tokens, device=padded.device)
        segment = torch.searchsorted(self.cu[1:], every, right=True)
        return padded[segment, every - self.cu[segment]]


def _by_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    queries: _Segments,
    keys: _Segments,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Pad, multiply, cap, mask, softmax, multiply, pack; the reference for every faster path."""
    tokens, heads, size = query.shape
    kv_heads = key.shape[1]
    shared, longest = heads // kv_heads, queries.longest
    rows = torch.arange(keys.longest, device=query.device)
    # Positions count from a segment's first key, and its last query stands at its last key.
    before = (keys.lengths - queries.lengths)[:, None]
    at = before + torch.arange(longest, device=query.device)
    seen = rows <= at[..., None]
    if window is not None:
        seen &= rows > at[..., None] - window
    # No copies of keys for the queries that share them: those become rows of one product.
    asked = queries.padded(query).reshape(-1, longest, kv_heads, shared, size)
    asked = asked.permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = asked @ keys.padded(key).permute(0, 2, 3, 1) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.reshape(-1, kv_heads, shared, longest, keys.longest)
    scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype).flatten(2, 3)
    mixed = weights @ keys.padded(value).transpose(1, 2)
    mixed = mixed.reshape(-1, heads, longest, size).transpose(1, 2)
    return queries.packed(mixed, tokens)
