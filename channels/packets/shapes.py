"""Whether a packet holds a state of the shape that its receiver keeps."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unspoken.channels.errors import GeometryMismatch
from unspoken.channels.kv.geometry import LayerGeometry
from unspoken.channels.model import CausalModel
from unspoken.channels.packets.layout import folded_place
from unspoken.channels.packets.manifest import DTYPES, LayerShape, PacketManifest


def check_shapes(manifest: PacketManifest, receiver: CausalModel) -> None:
    """Refuse other layers, and snapshots of other recurrent layers, than the receiver's.

    Raises:
        GeometryMismatch: naming both.
    """
    layers = receiver.geometry.layers
    theirs, ours = [_shape(layer) for layer in manifest.layers], [_shape(one) for one in layers]
    width = receiver.geometry.hidden_size
    if theirs != ours or (manifest.hidden and manifest.hidden_size != width):
        raise GeometryMismatch(
            f"the packet holds {_described(manifest.layers)}",
            expected=f"{_described(layers)}, as the receiver has",
            fix="have the sharer write it with the receiver's model",
        )
    folded = {(one.layer, one.name, one.shape, DTYPES[one.dtype]) for one in manifest.folded}
    recurrent = {
        (number, part.name, part.shape, part.dtype)
        for number, layer in enumerate(layers)
        for part in layer.recurrent
    }
    if folded and folded != recurrent:
        raise GeometryMismatch(
            f"the packet holds snapshots of {len(folded)} tensors of recurrent layers",
            expected=f"the {len(recurrent)} that the receiver has, in their shapes and types",
            fix="have the sharer write it with the receiver's model",
        )


def folded_of(tensors: Mapping[str, Tensor], device: torch.device) -> dict[int, dict[str, Tensor]]:
    """What one layer's tensors hold of snapshots, by their positions."""
    folded: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if (place := folded_place(name)) is not None:
            at, part = place
            folded.setdefault(at, {})[part] = tensor.to(device)
    return folded


def _described(layers: Sequence[LayerShape] | Sequence[LayerGeometry]) -> str:
    shapes = sorted({_shape(layer) for layer in layers})
    listed = (
        f"{heads} x {dim}" + (f" and {values}" if values != dim else "")
        for heads, dim, values in shapes[:4]
    )
    return f"{len(layers)} layers of " + ", ".join(listed)


def _shape(layer: LayerShape | LayerGeometry) -> tuple[int, int, int]:
    return layer.kv_heads, layer.head_dim, layer.values
