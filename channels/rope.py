"""Rotary position embeddings: turning keys to other positions.

A rotated key is ``scale * R(p θ) k``. Rotations add up, so a key moves from position p to p + δ by ``R(δ θ)`` alone,
whatever the scale (Su et al., RoFormer, arXiv 2104.09864, section 3.2.2). Angles are taken in float64 where the device
has it, products in float32 whatever the dtype of the cache.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from unspoken.channels.errors import ModelSupportError

__all__ = ["Rotary", "rotate", "shift", "unrotate"]


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """One rotary embedding of a model.

    Attributes:
        inverse_frequencies: Radians per position, shape (rotary_dim / 2,), float32.
        scale: What the model multiplies rotated keys by (1 for plain rotary embeddings).
        dynamic: Whether the frequencies change with the length of the sequence.
    """

    inverse_frequencies: Tensor
    scale: float = 1.0
    dynamic: bool = False

    @property
    def dimensions(self) -> int:
        """Number of leading dimensions of a head that are rotated."""
        return 2 * self.inverse_frequencies.numel()


def _turn(keys: Tensor, angles: Tensor, factor: float) -> Tensor:
    """Rotate the first ``2 * angles.shape[-1]`` dimensions of keys (heads, tokens, head_dim) by `angles`."""
    half = angles.shape[-1]
    cos = (angles.cos() * factor).to(device=keys.device, dtype=torch.float32)
    sin = (angles.sin() * factor).to(device=keys.device, dtype=torch.float32)
    first, second = keys[..., :half].float(), keys[..., half : 2 * half].float()
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(
        keys.dtype
    )
    rest = keys[..., 2 * half :]
    return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def shift(keys: Tensor, delta: int, rotary: Rotary) -> Tensor:
    """Move rotated keys by `delta` positions.

    Args:
        keys: Rotated keys, shape (kv_heads, tokens, head_dim).
        delta: Number of positions, negative to move towards the start.
        rotary: The rotary embedding these keys were rotated with.

    Returns:
        New keys of the same shape and dtype; `keys` itself where delta is 0.

    Raises:
        ModelSupportError: The frequencies depend on the sequence's length.
    """
    if delta == 0:
        return keys
    if rotary.dynamic:
        raise ModelSupportError(
            "keys of a rotary embedding whose frequencies change with the length cannot be moved",
            expected="a rotary embedding with fixed frequencies (default, linear, yarn, llama3)",
            fix="let the message come first in the receiver's context, or use a text channel",
        )
    return _turn(keys, rotary.inverse_frequencies.cpu().double() * delta, 1.0)


def rotate(keys: Tensor, positions: Tensor, rotary: Rotary) -> Tensor:
    """Rotate bare keys (kv_heads, tokens, head_dim) to `positions` (tokens,), scaled as the model does."""
    angles = positions.cpu().double()[:, None] * rotary.inverse_frequencies.cpu().double()
    return _turn(keys, angles, rotary.scale)


def unrotate(keys: Tensor, positions: Tensor, rotary: Rotary) -> Tensor:
    """Undo `rotate`: bare keys, the scale divided back."""
    angles = -positions.cpu().double()[:, None] * rotary.inverse_frequencies.cpu().double()
    return _turn(keys, angles, 1.0 / rotary.scale)
