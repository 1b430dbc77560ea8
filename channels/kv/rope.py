"""Rotary position embeddings: turning keys to other positions.

A rotated key is ``scale * R(p θ) k``. Rotations add up, so a key moves from position p to p + δ by
``R(δ θ)`` alone, whatever the scale (Su et al., RoFormer, arXiv 2104.09864, section 3.2.2). Angles
are taken in float64 where the device has it, products in float32 whatever the dtype of the cache.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from unspoken.channels.errors import ModelSupportError


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """One rotary embedding of a model.

    Attributes:
        inverse_frequencies: Radians per position, shape (rotary_dim / 2,), float32.
        scale: What the model multiplies rotated keys by (1 for plain rotary embeddings).
        dynamic: Whether the frequencies change with the length of the sequence.
        interleaved: Whether a pair of dimensions is two neighbours; else it is one of the first
            half and one of the second.
    """

    inverse_frequencies: Tensor
    scale: float = 1.0
    dynamic: bool = False
    interleaved: bool = False

    @property
    def dimensions(self) -> int:
        """Number of leading dimensions of a head that are rotated."""
        return 2 * self.inverse_frequencies.numel()


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """A rotation of many tokens, worked out once and applied to every layer that shares it.

    Attributes:
        cos: Cosines times the scale, shape (tokens, rotary_dim / 2) or (rotary_dim / 2,), float32.
        sin: Sines times the scale, same shape.
        interleaved: As in `Rotary`.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool = False

    def __call__(self, keys: Tensor) -> Tensor:
        """Rotate the leading dimensions of keys (…, tokens, head_dim); same shape and dtype."""
        half = self.cos.shape[-1]
        if self.interleaved:
            pairs = keys[..., : 2 * half].float()
            first, second = pairs[..., 0::2], pairs[..., 1::2]
        else:
            first, second = keys[..., :half].float(), keys[..., half : 2 * half].float()
        both = (first * self.cos - second * self.sin, second * self.cos + first * self.sin)
        if self.interleaved:
            turned = torch.stack(both, dim=-1).flatten(-2).to(keys.dtype)
        else:
            turned = torch.cat(both, dim=-1).to(keys.dtype)
        rest = keys[..., 2 * half :]
        return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def _turn(angles: Tensor, factor: float, rotary: Rotary) -> Rotation:
    cos, sin = (angles.cos() * factor).float(), (angles.sin() * factor).float()
    return Rotation(cos, sin, rotary.interleaved)


def _wide(tensor: Tensor) -> Tensor:
    """Float64, or float32 on a device that has none."""
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def _angles(positions: Tensor, rotary: Rotary) -> Tensor:
    """Angles at positions, (tokens, rotary_dim / 2), where the positions live."""
    frequencies = rotary.inverse_frequencies.to(positions.device)
    return _wide(positions)[:, None] * _wide(frequencies)


def turn_to(positions: Tensor, rotary: Rotary) -> Rotation:
    """The rotation of bare keys to `positions`, (tokens,), scaled as the model does."""
    return _turn(_angles(positions, rotary), rotary.scale, rotary)


def turn_back(positions: Tensor, rotary: Rotary) -> Rotation:
    """The rotation that makes keys at `positions` bare again, the scale divided back."""
    return _turn(-_angles(positions, rotary), 1.0 / rotary.scale, rotary)


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
    frequencies = rotary.inverse_frequencies.to(keys.device)
    return _turn(_wide(frequencies) * delta, 1.0, rotary)(keys)
