"""A bridge's module: from a sharer's bare rows and a receiver's embeddings to its bare rows.

Three parts, after reduced-rank regression (Izenman 1975), Cache-to-Cache (arXiv 2510.03215: a
projection and a weighting module) and Latent Cache Flow (arXiv 2605.22863: keys and values jointly
through one bottleneck)::

    features = features · sketch                       of wide models alone, block by block
    code     = standardised features · encode          rank numbers per token, for all layers
    rows     = code · decode                           the closed form
    hidden   = silu(up(code))
    residual = down(hidden) · spread                   keys and values through one bottleneck
    weight   = sigmoid(weigh(hidden))
    rows    += weight[token, head] · residual
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unspoken.channels.bridges.features import width, widths
from unspoken.channels.kv.geometry import CacheGeometry


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectorConfig:
    """Hyperparameters of a projector.

    Attributes:
        source_layers: The sharer's layers that are read.
        native_layers: The receiver's layers that it runs itself; their output is a feature, the
            rest is projected.
        embeddings: How many of the receiver's token embeddings are features: that of the token, and
            of those before.
        rank: Width of the code.
        hidden: Width of the residual's hidden layer; 0 for no residual.
        bottleneck: Width of the residual's bottleneck.
        sketch: Columns that each source layer's rows are brought to before the map, by their
            principal components, and half of those that each of the receiver's own blocks is; 0 for
            all columns as they are.
    """

    source_layers: tuple[int, ...]
    native_layers: int = 0
    embeddings: int = 2
    rank: int = 512
    hidden: int = 2048
    bottleneck: int = 256
    sketch: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a manifest holds it."""
        data = {**asdict(self), "source_layers": list(self.source_layers)}
        if not self.sketch:  # versions that know of no sketch read the rest
            del data["sketch"]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ProjectorConfig":
        """The inverse of `to_dict`."""
        return cls(**{**data, "source_layers": tuple(data["source_layers"])})

    def target_layers(self, receiver: CacheGeometry) -> range:
        """The receiver's layers that are projected."""
        return range(self.native_layers, len(receiver.layers))

    def features(self, sharer: CacheGeometry, receiver: CacheGeometry) -> tuple[int, int]:
        """Columns that come of the sharer, and of the receiver."""
        extra = self.embeddings + (self.native_layers > 0)
        return width(sharer, self.source_layers), extra * receiver.hidden_size

    def blocks(self, sharer: CacheGeometry, receiver: CacheGeometry) -> tuple[tuple[int, int], ...]:
        """Columns of each block of the features, and how many of it the map reads.

        A block is a source layer, an embedding, or what the native layers make.
        """
        extra = self.embeddings + (self.native_layers > 0)
        sizes = [(size, self.sketch) for size in widths(sharer, self.source_layers)]
        sizes += [(receiver.hidden_size, 2 * self.sketch)] * extra
        return tuple((size, min(size, most) if self.sketch else size) for size, most in sizes)

    def inputs(self, sharer: CacheGeometry, receiver: CacheGeometry) -> tuple[int, int]:
        """Columns that the map reads, of the sharer and of the receiver."""
        kept = [count for _, count in self.blocks(sharer, receiver)]
        layers = len(self.source_layers)
        return sum(kept[:layers]), sum(kept[layers:])


class Projector(nn.Module):
    """Maps features (tokens, columns) to bare rows (tokens, columns), float32.

    Args:
        config: Its hyperparameters.
        sharer: Geometry of the sharer.
        receiver: Geometry of the receiver.

    Attributes:
        origin: With a sketch, the mean of the features, (columns,). The matrices of its blocks are
            ``sketch_0`` and on.
        mean, scale: Of what the map reads; what the code sees is ``(features - mean) * scale``.
        offset, deviation: Mean and standard deviation of the targets.
    """

    origin: Tensor
    mean: Tensor
    scale: Tensor
    offset: Tensor
    deviation: Tensor
    _sizes: Tensor

    def __init__(
        self, config: ProjectorConfig, sharer: CacheGeometry, receiver: CacheGeometry
    ) -> None:
        super().__init__()
        self.config = config
        layers = config.target_layers(receiver)
        if min(config.rank, len(layers)) < 1 or (config.hidden and config.bottleneck < 1):
            raise ValueError("it has no width, or no layer to project")
        inputs = sum(config.inputs(sharer, receiver))
        outputs = width(receiver, layers)
        self._blocks = config.blocks(sharer, receiver) if config.sketch else ()
        if config.sketch:
            self.register_buffer("origin", torch.zeros(sum(config.features(sharer, receiver))))
        for number, block in enumerate(self._blocks):
            self.register_buffer(f"sketch_{number}", torch.zeros(block))
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(inputs))
        self.register_buffer("offset", torch.zeros(outputs))
        self.register_buffer("deviation", torch.ones(outputs))
        self.encode = nn.Parameter(torch.zeros(inputs, config.rank))
        self.decode = nn.Parameter(torch.zeros(config.rank, outputs))
        shapes = [receiver.layers[number] for number in layers]
        sizes = [shape.head_dim for shape in shapes for _ in range(2 * shape.kv_heads)]
        self.register_buffer("_sizes", torch.tensor(sizes), persistent=False)
        self._outputs, self._heads = outputs, len(sizes)
        self._even = sizes[0] if len(set(sizes)) == 1 else 0
        if config.hidden:
            self.code_scale = nn.Parameter(torch.ones(config.rank))
            self.up = nn.Linear(config.rank, config.hidden)
            self.down = nn.Linear(config.hidden, config.bottleneck, bias=False)
            self.spread = nn.Parameter(torch.zeros(config.bottleneck, outputs))
            self.weigh = nn.Linear(config.hidden, self._heads)

    def forward(self, features: Tensor) -> Tensor:
        """Bare rows for every token of `features`."""
        code = (self.sketched(features) - self.mean) * self.scale @ self.encode
        rows = code @ self.decode
        if self.config.hidden:
            rows = rows + self.residual(code)
        mapped: Tensor = rows * self.deviation + self.offset
        return mapped

    def sketched(self, features: Tensor) -> Tensor:
        """What the map reads of the features, (tokens, columns)."""
        if not self._blocks:
            return features
        parts = torch.split(features - self.origin, [size for size, _ in self._blocks], dim=1)
        return torch.cat([part @ self.get_buffer(f"sketch_{n}") for n, part in enumerate(parts)], 1)

    def residual(self, code: Tensor) -> Tensor:
        """The weighted residual of standardised rows."""
        hidden = nn.functional.silu(self.up(code * self.code_scale))
        delta = self.down(hidden) @ self.spread
        weight = self.weigh(hidden).sigmoid()
        if self._even:
            weighted = delta.reshape(len(delta), self._heads, self._even) * weight[..., None]
        else:
            each = weight.repeat_interleave(self._sizes, dim=1, output_size=self._outputs)
            weighted = delta * each
        scaled: Tensor = weighted.reshape(len(delta), self._outputs)
        return scaled


def without_gates(weights: Mapping[str, Tensor], receiver: CacheGeometry) -> dict[str, Tensor]:
    """A projector's weights without the gates that bridges had once, one for each layer.

    A gate was a constant, so it goes into the columns of `spread` that it multiplied. Weights that
    do not fit the receiver are left for their reader to refuse.

    Args:
        weights: As they are stored, float32.
        receiver: Geometry of the receiver.
    """
    kept = dict(weights)
    gate, spread = kept.get("gate"), kept.get("spread")
    if gate is None or spread is None or gate.dim() != 1 or spread.dim() != 2:
        return kept
    count = len(receiver.layers)
    columns = widths(receiver, range(max(count - len(gate), 0), count))
    if len(columns) == len(gate) and sum(columns) == spread.shape[1]:
        each = gate.sigmoid().repeat_interleave(torch.tensor(columns, device=gate.device))
        kept["spread"] = spread * each
        del kept["gate"]
    return kept
