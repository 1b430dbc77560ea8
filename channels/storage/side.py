"""One end of a bridge: a model, as far as its cache goes, as plain data."""

import json
import re
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Self

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, Field, model_validator

from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry, ModelIdentity

if TYPE_CHECKING:
    import torch

    from unspoken.channels.kv.rope import Rotary
    from unspoken.channels.model import CausalModel


MOST_LAYERS, MOST_HEADS, MOST, MOST_POSITIONS = 1024, 4096, 2**20, 2**40
"""Past what any model has: a manifest that says more would cost memory before it was refused."""


def short_name(ref: str) -> str:
    """A model reference as a part of a file name: lower case, no owner, path or scheme."""
    last = re.split(r"[/\\:]", ref.rstrip("/\\"))[-1].removesuffix(".gguf").lower()
    return re.sub(r"[^a-z0-9.]+", "-", last).strip("-.")[:40].rstrip("-.") or "model"


def running_version() -> str:
    """The version of unspoken that runs; ``0`` in a source tree that is not installed."""
    try:
        return metadata.version("unspoken")
    except metadata.PackageNotFoundError:
        return "0"


def pair_digest(sharer: ModelIdentity, receiver: ModelIdentity) -> str:
    """What a bridge is looked up by: 12 hex digits of BLAKE3 over both identities."""
    text = json.dumps([asdict(sharer), asdict(receiver)], sort_keys=True, separators=(",", ":"))
    return blake3(text.encode()).hexdigest()[:12]


class Part(BaseModel):
    """A part of a manifest: frozen, finite, without keys of its own invention."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AuditFile(Part):
    """A file that an audit read.

    Attributes:
        name: Its name.
        digest: Of its bytes, in hex.
        rows: Number of rows taken from it.
    """

    name: str
    digest: str
    rows: int = Field(ge=0)


class _Identity(Part):
    weights: str
    config: str
    tokenizer: str


class _Layer(Part):
    kv_heads: int = Field(gt=0, le=MOST_HEADS)
    head_dim: int = Field(gt=0, le=MOST)
    rope: str | None
    window: int | None = Field(gt=0, le=MOST_POSITIONS)


class _Geometry(Part):
    layers: tuple[_Layer, ...] = Field(min_length=1, max_length=MOST_LAYERS)
    hidden_size: int = Field(gt=0, le=MOST)
    max_positions: int = Field(gt=0, le=MOST_POSITIONS)


class _Rotary(Part):
    inverse_frequencies: tuple[float, ...] = Field(min_length=1, max_length=MOST)
    scale: float
    dynamic: bool


class ModelDescription(Part):
    """One end of a bridge: a model, as far as its cache goes.

    Attributes:
        ref: The reference it was loaded by.
        identity: Its `ModelIdentity`.
        geometry: Its `CacheGeometry`.
        rotary: Its rotary embeddings by the names that the geometry uses.
        layer_dtype: Element type of its cache when the bridge was fitted, such as ``float32``.
    """

    ref: str
    identity: _Identity
    geometry: _Geometry
    rotary: dict[str, _Rotary]
    layer_dtype: str

    @model_validator(mode="after")
    def _has_every_rotary(self) -> Self:
        lacking = self.to_geometry().ropes - set(self.rotary)
        if lacking:
            raise ValueError(f"no rotary embedding {', '.join(sorted(lacking))}")
        for layer in self.geometry.layers:
            turned = 2 * len(self.rotary[layer.rope].inverse_frequencies) if layer.rope else 0
            if turned > layer.head_dim:
                raise ValueError(f"{turned} dimensions to rotate in heads of {layer.head_dim}")
        return self

    @classmethod
    def of(cls, model: "CausalModel", ref: str) -> Self:
        """Describe a loaded model."""
        rotary = {}
        for name in sorted(model.geometry.ropes):
            embedding = model.rotary(name)
            rotary[name] = _Rotary(
                inverse_frequencies=tuple(embedding.inverse_frequencies.float().tolist()),
                scale=float(embedding.scale),
                dynamic=embedding.dynamic,
            )
        return cls(
            ref=ref,
            identity=_Identity(**asdict(model.identity)),
            geometry=_Geometry(
                layers=tuple(
                    _Layer(**{name: getattr(layer, name) for name in _Layer.model_fields})
                    for layer in model.geometry.layers
                ),
                hidden_size=model.geometry.hidden_size,
                max_positions=model.geometry.max_positions,
            ),
            rotary=rotary,
            layer_dtype=str(model.dtype).removeprefix("torch."),
        )

    def to_identity(self) -> ModelIdentity:
        """The model's identity."""
        return ModelIdentity(**self.identity.model_dump())

    def to_geometry(self) -> CacheGeometry:
        """The shape of the model's cache."""
        layers = tuple(LayerGeometry(**layer.model_dump()) for layer in self.geometry.layers)
        return CacheGeometry(layers, self.geometry.hidden_size, self.geometry.max_positions)

    def to_rotary(self, device: "torch.device | str" = "cpu") -> dict[str, "Rotary"]:
        """The rotary embeddings, their frequencies float32 on `device`, bit for bit the model's."""
        import torch

        from unspoken.channels.kv.rope import Rotary

        return {
            name: Rotary(
                torch.tensor(embedding.inverse_frequencies, dtype=torch.float32, device=device),
                embedding.scale,
                embedding.dynamic,
            )
            for name, embedding in self.rotary.items()
        }
