"""A decoder layer with rotary attention and a gated feed-forward part, as few operations."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unspoken.agents.models.fast_path.norm import Norm
from unspoken.agents.models.fast_path.product import Product

Attend = Callable[[int, Tensor, Tensor], Tensor]
"""Attention of a layer: its number, queries (tokens, heads, size), already scaled, and new keys
followed by new values, (tokens, 2 * kv_heads, size); to (tokens, heads, size).
"""


@dataclass(frozen=True, slots=True)
class Rotation:
    """How the queries, keys and values of some tokens are rotated and scaled, all in one.

    Attributes:
        cos: (tokens, heads + 2 * kv_heads, size): of queries times their scale, of keys, and ones.
        sin: The same, its first half negative; of values zeros.
    """

    cos: Tensor
    sin: Tensor

    @staticmethod
    def of(cos: Tensor, sin: Tensor, heads: int, kv_heads: int, scale: float) -> "Rotation":
        """From what a model's rotary embedding gives, (tokens, size) each."""
        half = cos.shape[-1] // 2
        signed = torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)
        factors = cos.new_ones(heads + 2 * kv_heads, 1)
        factors[:heads] = scale
        values = slice(heads + kv_heads, None)
        cos_of_all, sin_of_all = cos[:, None] * factors, signed[:, None] * factors
        cos_of_all[:, values] = 1
        sin_of_all[:, values] = 0
        return Rotation(cos_of_all, sin_of_all)

    def __call__(self, values: Tensor) -> Tensor:
        """Rotate (tokens, heads + 2 * kv_heads, size)."""
        tokens, heads, size = values.shape
        turned = values.view(tokens, heads, 2, size // 2).flip(2).view(tokens, heads, size)
        return torch.addcmul(values * self.cos, turned, self.sin)


@dataclass(frozen=True, slots=True, kw_only=True)
class FastLayer:
    """One layer.

    Attributes:
        number: Its number.
        kind: Which of the model's rotary embeddings it has.
        scale: What queries are multiplied with.
        heads, kv_heads, size: Heads of queries, heads of keys, and their size.
        before_attention, before_mlp: Norms of what the two parts read.
        after_attention, after_mlp: Norms of what they add, where there are such.
        each_head: Norm of queries and keys, (heads + kv_heads, size) weights; None where there is
            none.
        qkv, out, gate_up, down: Its products.
        act: What the gate goes through.
    """

    number: int
    kind: str
    scale: float
    heads: int
    kv_heads: int
    size: int
    before_attention: Norm
    before_mlp: Norm
    after_attention: Norm | None
    after_mlp: Norm | None
    each_head: Norm | None
    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    act: Callable[[Tensor], Tensor]

    @property
    def rotation(self) -> tuple[str, int, int, float]:
        """Equal for layers that rotate alike."""
        return self.kind, self.heads, self.kv_heads, self.scale

    def __call__(self, hidden: Tensor, rotate: Rotation, attend: Attend) -> Tensor:
        """(tokens, hidden_size) to the same shape."""
        tokens = hidden.shape[0]
        heads, kv_heads = self.heads, self.kv_heads
        qkv = self.qkv(self.before_attention(hidden)).view(tokens, heads + 2 * kv_heads, self.size)
        if self.each_head is not None:
            rotated = qkv[:, : heads + kv_heads]
            rotated.copy_(self.each_head(rotated))
        qkv = rotate(qkv)
        mixed = attend(self.number, qkv[:, :heads], qkv[:, heads:])
        added = self.out(mixed.reshape(tokens, -1))
        hidden = hidden + (added if self.after_attention is None else self.after_attention(added))
        gate, up = self.gate_up(self.before_mlp(hidden)).chunk(2, dim=-1)
        added = self.down(self.act(gate).mul_(up))
        return hidden + (added if self.after_mlp is None else self.after_mlp(added))
