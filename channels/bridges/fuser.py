"""Fuse mode's module: a receiver's own cache rows, enriched by another model's of the same input.

After Cache-to-Cache (Fu et al., arXiv 2510.03215, section 3), but on un-rotated keys, with keys and
values through one joint bottleneck (Latent Cache Flow, arXiv 2605.22863) and plain sigmoid gates::

    theirs   = standardised sharer rows · encode       rank numbers per token
    mine     = standardised own rows · own_encode      own_rank numbers per token
    last     = theirs of the input's last token        it has read all of the input
    hidden   = silu(up([theirs ; mine ; last]))
    residual = down(hidden) · spread
    weight   = sigmoid(weigh(hidden))
    rows     = own + gate[layer] · weight[token, head] · residual
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import join
from typing import Any

import torch
from torch import Tensor, nn

from unspoken.channels.bridges.features import bare_rows, state_of, width, widths
from unspoken.channels.bridges.folder import read
from unspoken.channels.bridges.projection import SINK
from unspoken.channels.bridges.quantize import load_quantized, quantize
from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.geometry import CacheGeometry
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import CausalModel, rotaries

PREFIX = "fuse."
"""What the names of a fuser's tensors begin with in a bridge's folder."""

CONFIG = "fuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class FuserConfig:
    """Hyperparameters of a fuser.

    Attributes:
        source_layers: The sharer's layers that are read.
        own_layers: The receiver's layers that are read; all of its layers are enriched.
        rank: Width of the sharer's code.
        own_rank: Width of the receiver's own code.
        hidden: Width of the hidden layer.
        bottleneck: Width of the bottleneck.
        last: Whether every token gets the sharer's code of the last token too.
    """

    source_layers: tuple[int, ...]
    own_layers: tuple[int, ...]
    rank: int = 256
    own_rank: int = 128
    hidden: int = 768
    bottleneck: int = 192
    last: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as a manifest holds it under ``fuse``."""
        layers = {name: list(getattr(self, name)) for name in ("source_layers", "own_layers")}
        return {**asdict(self), **layers}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "FuserConfig":
        """The inverse of `to_dict`."""
        layers = {name: tuple(data[name]) for name in ("source_layers", "own_layers")}
        return cls(**{**data, **layers})


class Fuser(nn.Module):
    """Maps the sharer's and the receiver's own bare rows to enriched ones, float32.

    Args:
        config: Its hyperparameters.
        sharer: Geometry of the sharer.
        receiver: Geometry of the receiver.

    Attributes:
        mean, inverse: Of the sharer's rows: mean, and one over the standard deviation.
        own_mean, own_inverse: The same of the receiver's rows that are read.
        deviation: Standard deviation of all of the receiver's rows.
    """

    mean: Tensor
    inverse: Tensor
    own_mean: Tensor
    own_inverse: Tensor
    deviation: Tensor
    _columns: Tensor
    _sizes: Tensor
    _heads: Tensor

    def __init__(self, config: FuserConfig, sharer: CacheGeometry, receiver: CacheGeometry) -> None:
        super().__init__()
        self.config = config
        theirs = width(sharer, config.source_layers)
        mine = width(receiver, config.own_layers)
        layers = range(len(receiver.layers))
        outputs = width(receiver, layers)
        self.register_buffer("mean", torch.zeros(theirs))
        self.register_buffer("inverse", torch.ones(theirs))
        self.register_buffer("own_mean", torch.zeros(mine))
        self.register_buffer("own_inverse", torch.ones(mine))
        self.register_buffer("deviation", torch.ones(outputs))
        self.register_buffer("_columns", _columns(receiver, config.own_layers), persistent=False)
        shapes = receiver.layers
        sizes = torch.tensor(
            [shape.head_dim for shape in shapes for _ in range(2 * shape.kv_heads)]
        )
        heads = torch.tensor([2 * shape.kv_heads for shape in shapes])
        self.register_buffer("_sizes", sizes, persistent=False)
        self.register_buffer("_heads", heads, persistent=False)
        self._outputs, self._all_heads = outputs, len(sizes)
        codes = config.rank * (1 + config.last) + config.own_rank
        if min(codes, config.hidden, config.bottleneck) < 1:
            raise ValueError("it has no width")
        self.encode = nn.Parameter(torch.zeros(theirs, config.rank))
        self.own_encode = nn.Parameter(torch.zeros(mine, config.own_rank))
        self.up = nn.Linear(codes, config.hidden)
        self.down = nn.Linear(config.hidden, config.bottleneck, bias=False)
        self.spread = nn.Parameter(torch.zeros(config.bottleneck, outputs))
        self.weigh = nn.Linear(config.hidden, self._all_heads)
        self.gate = nn.Parameter(torch.zeros(len(shapes)))
        nn.init.normal_(self.down.weight, std=config.hidden**-0.5)
        nn.init.zeros_(self.weigh.weight)
        nn.init.zeros_(self.weigh.bias)

    def forward(self, theirs: Tensor, own: Tensor) -> Tensor:
        """Enriched rows of the input's tokens; before any training they are `own`.

        Args:
            theirs: The sharer's bare rows of `source_layers` for each token, (tokens, columns).
            own: The receiver's bare rows of all its layers, (tokens, columns).
        """
        code = (theirs - self.mean) * self.inverse @ self.encode
        mine = own.index_select(1, self._columns)
        parts = [code, (mine - self.own_mean) * self.own_inverse @ self.own_encode]
        if self.config.last:
            parts.append(code[-1:].expand_as(code))
        hidden = nn.functional.silu(self.up(torch.cat(parts, dim=1)))
        residual = self.down(hidden) @ self.spread * self.deviation
        gate = self.gate.sigmoid().repeat_interleave(self._heads, output_size=self._all_heads)
        weight = (self.weigh(hidden).sigmoid() * gate).repeat_interleave(
            self._sizes, dim=1, output_size=self._outputs
        )
        rows: Tensor = own + weight * residual
        return rows


def _columns(geometry: CacheGeometry, layers: tuple[int, ...]) -> Tensor:
    """Columns of some layers in a row of all, (columns,) int64."""
    sizes = widths(geometry, range(len(geometry.layers)))
    starts = [sum(sizes[:number]) for number in layers]
    columns = [
        torch.arange(start, start + sizes[n]) for start, n in zip(starts, layers, strict=True)
    ]
    return torch.cat(columns) if columns else torch.empty(0, dtype=torch.long)


def own_rows(own: KVState, at: int, receiver: CausalModel) -> Tensor:
    """The receiver's bare rows of all layers from position `at` on, (tokens, columns)."""
    geometry = receiver.geometry
    positions = torch.arange(at, own.stop, device=own.device)
    return bare_rows(own, range(len(geometry.layers)), positions, geometry, rotaries(receiver))


def fused_state(
    fuser: Fuser | None, theirs: Tensor, own: Tensor, at: int, receiver: CausalModel
) -> KVState:
    """The receiver's enriched state of positions at … at + tokens - 1.

    The first `SINK` positions of a context stay as the receiver made them: all attention leans on
    them.

    Args:
        fuser: The module; None leaves all rows as they are.
        theirs: The sharer's bare rows for each token, (tokens, columns).
        own: The receiver's, (tokens, columns), as `own_rows` gives them.
        at: Position of the first token.
        receiver: The receiver.
    """
    rows = own if fuser is None else fuser(theirs.to(own.device), own)
    unchanged = min(max(SINK - at, 0), len(rows))
    if unchanged:
        rows = torch.cat([own[:unchanged], rows[unchanged:]])
    return state_of(rows, range(len(receiver.geometry.layers)), at, receiver)


# In a bridge's folder, beside the projector or alone


def fuse_tensors(fuser: Fuser, dtype: str = "int8") -> dict[str, Tensor]:
    """A fuser's weights as `folder.write` stores them, beside a projector's or alone."""
    return {PREFIX + name: tensor for name, tensor in quantize(fuser.state_dict(), dtype).items()}


def without_fuser(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is the projector's of a manifest's config and a folder's tensors."""
    rest = {name: value for name, value in config.items() if name != CONFIG}
    return rest, {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}


def fuser_of(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    sharer: CacheGeometry,
    receiver: CacheGeometry,
) -> Fuser | None:
    """The fuser of a manifest's config and a folder's tensors; None where there is none.

    Raises:
        BridgeError: The weights are not those that the configuration describes.
    """
    ours = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in tensors.items()
        if name.startswith(PREFIX)
    }
    if CONFIG not in config and not ours:
        return None

    def build() -> Fuser:
        return Fuser(FuserConfig.from_dict(config[CONFIG]), sharer, receiver)

    return load_quantized(build, ours, "fuse weights")


def load_fuser(
    folder: Path, sharer: CausalModel, receiver: CausalModel
) -> tuple[Fuser, dict[str, float | int | str | None]]:
    """The fuser in a bridge's folder, and the figures of its fit.

    Raises:
        BridgeError: The folder is broken, or holds no fuser.
        IdentityMismatch: It was fitted for other models.
    """
    manifest, tensors = read(folder)
    manifest.sharer.to_identity().require(sharer.identity, "the sharer")
    manifest.receiver.to_identity().require(receiver.identity, "the receiver")
    fuser = fuser_of(manifest.config, tensors, sharer.geometry, receiver.geometry)
    if fuser is None:
        ends = (manifest.sharer.ref, manifest.receiver.ref)
        raise BridgeError(
            f"the bridge {folder} was fitted without fuse mode",
            expected="a bridge with a fuser",
            fix="fit it with fuse=FuseSettings() in a FitPlan, or "
            f"`unspoken bridge fit {join(ends)} --fuse`",
        )
    return fuser.to(receiver.device), manifest.fit
