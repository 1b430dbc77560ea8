"""What shapes a cache, and whose it is."""

import math
from collections import Counter
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from unspoken.channels.errors import GeometryMismatch, IdentityMismatch

if TYPE_CHECKING:
    import torch

LayerKind = Literal["rows", "latent", "recurrent", "both", "none"]
"""What a layer keeps of the tokens before: see `LayerGeometry.kind`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentPart:
    """One tensor of a recurrent layer's snapshot.

    Attributes:
        name: What it is: ``conv.N`` or ``recurrent.N``.
        shape: Its shape; it has none for tokens.
        dtype: Element type, which need not be the model's.
    """

    name: str
    shape: tuple[int, ...]
    dtype: "torch.dtype"

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGeometry:
    """The shape of one layer's cache.

    Attributes:
        kv_heads: Number of key and value heads; 0 for a layer that keeps no rows of its own.
        head_dim: Size of one head's keys.
        rope: Name of the rotary embedding this layer uses (a layer type, or ``default``); None for
            keys that hold no position.
        window: Number of positions a query sees, itself included; ``None`` sees all.
        value_dim: Size of one head's values; None where it is that of the keys.
        indexer: Of the numbers of a key, how many at its end are an indexer's, which chooses what
            a query sees.
        latent: Whether the rows are those of latent attention: in place of keys what keys and
            values are expanded from, in place of values the part of the keys that is rotated.
        recurrent: What a snapshot holds of the layer; empty for a layer that is not recurrent.
    """

    kv_heads: int
    head_dim: int
    rope: str | None = "default"
    window: int | None = None
    value_dim: int | None = None
    indexer: int = 0
    latent: bool = False
    recurrent: tuple[RecurrentPart, ...] = ()

    @property
    def values(self) -> int:
        """Size of one head's values."""
        return self.head_dim if self.value_dim is None else self.value_dim

    @property
    def kind(self) -> LayerKind:
        """What the layer keeps of the tokens before.

        ``rows`` of keys and values, ``latent`` rows, one ``recurrent`` state of all of them,
        ``both`` rows and a recurrent state, or ``none``: it keeps nothing, or reads another's rows.
        """
        if self.recurrent:
            return "both" if self.kv_heads else "recurrent"
        if not self.kv_heads:
            return "none"
        return "latent" if self.latent else "rows"


_KINDS: dict[LayerKind, str] = {
    "rows": "keep keys and values",
    "latent": "keep latent rows",
    "recurrent": "are recurrent",
    "both": "keep rows and a recurrent state",
    "none": "keep nothing of their own",
}


@dataclass(frozen=True, slots=True)
class CacheGeometry:
    """The shape of a model's cache.

    Attributes:
        layers: One entry per decoder layer.
        hidden_size: Width of the residual stream.
        max_positions: Number of positions the model was made for.
    """

    layers: tuple[LayerGeometry, ...]
    hidden_size: int
    max_positions: int

    @property
    def ropes(self) -> frozenset[str]:
        """Names of the rotary embeddings in use."""
        return frozenset(layer.rope for layer in self.layers if layer.rope is not None)

    @property
    def recurrent(self) -> bool:
        """Whether a layer keeps a recurrent state, which goes on only where a snapshot stands."""
        return any(layer.recurrent for layer in self.layers)

    @property
    def read_through(self) -> int:
        """Layers that a token is read through until every recurrent layer has it; 0 without any.

        A recurrent layer needs each token's hidden state, which comes of all layers below it.
        """
        last = max((at for at, layer in enumerate(self.layers) if layer.recurrent), default=-1)
        return last + 1

    @property
    def plain(self) -> bool:
        """Whether every layer keeps rows of keys and values, and nothing else."""
        return all(layer.kind == "rows" for layer in self.layers)

    @property
    def snapshot_bytes(self) -> int:
        """Bytes of one snapshot of all recurrent layers; 0 where there are none."""
        return sum(part.nbytes for layer in self.layers for part in layer.recurrent)

    def bytes_per_token(self, itemsize: int) -> int:
        """Bytes of rows that one token takes over all layers."""
        numbers = sum(layer.kv_heads * (layer.head_dim + layer.values) for layer in self.layers)
        return numbers * itemsize

    def seen_bytes(self, tokens: int, itemsize: int) -> int:
        """Bytes of rows that the last of so many tokens sees over all layers."""
        numbers = sum(
            layer.kv_heads * (layer.head_dim + layer.values) * min(tokens, layer.window or tokens)
            for layer in self.layers
        )
        return numbers * itemsize

    def require_rows(self, what: str) -> None:
        """Refuse a model whose layers keep anything but rows of keys and values.

        Raises:
            GeometryMismatch: naming what they keep.
        """
        if not self.plain:
            raise GeometryMismatch(
                f"{what} maps rows of keys and values, and of the model's layers "
                f"{self.described()}",
                expected="a model whose layers all have keys and values, and nothing else",
                fix="use text or a continuation with this model",
            )

    def described(self) -> str:
        """What its layers keep, for people: ``12 are recurrent, 4 keep keys and values``."""
        counts = Counter(layer.kind for layer in self.layers)
        return ", ".join(f"{count} {_KINDS[kind]}" for kind, count in counts.items())

    def described_reading(self) -> str:
        """What of a model with recurrent layers a message at another place is read through.

        ``47 of 48 layers, up to the last recurrent one, sparing 1 (2 %)``.
        """
        count, through = len(self.layers), self.read_through
        spared = count - through
        share = f" ({100 * spared / count:.0f} %)" if spared else ""
        return (
            f"{through} of {count} layers, up to the last recurrent one, "
            f"sparing {spared or 'none'}{share}"
        )


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Who made a state: digests (hex) that are equal only for equal models.

    Attributes:
        weights: All weights under canonical names, ties merged, values in float32, adapters
            included.
        config: The configuration, but for entries that change nothing of what is computed.
        tokenizer: The tokenizer's vocabulary, merges, normaliser and special tokens.
    """

    weights: str
    config: str
    tokenizer: str

    def differing(self, other: "ModelIdentity") -> str | None:
        """The first field that differs, the dearest mistake first, or None."""
        names = (field.name for field in fields(self))
        return next((name for name in names if getattr(self, name) != getattr(other, name)), None)

    def require(self, other: "ModelIdentity", what: str) -> None:
        """Refuse `what` (made by `other`) unless it was made by this very model.

        Raises:
            IdentityMismatch: naming both sides and the field that differs.
        """
        field = self.differing(other)
        if field is None:
            return
        raise IdentityMismatch(
            f"{what} was made by a model with other {field}: {getattr(other, field)[:16]}",
            field=field,
            expected=f"{field} {getattr(self, field)[:16]}, as the receiving model has",
            fix="use a text channel on this edge, or give both agents the same model",
        )
