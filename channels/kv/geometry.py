"""What shapes a cache, and whose it is."""

from dataclasses import dataclass, fields

from unspoken.channels.errors import IdentityMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGeometry:
    """The shape of one layer's cache.

    Attributes:
        kv_heads: Number of key and value heads.
        head_dim: Size of one head.
        rope: Name of the rotary embedding this layer uses (a layer type, or ``default``); None for
            keys that hold no position.
        window: Number of positions a query sees, itself included; ``None`` sees all.
    """

    kv_heads: int
    head_dim: int
    rope: str | None = "default"
    window: int | None = None


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

    def bytes_per_token(self, itemsize: int) -> int:
        """Bytes of keys and values one token takes over all layers."""
        return sum(2 * layer.kv_heads * layer.head_dim * itemsize for layer in self.layers)


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
