"""A state in fewer bytes, as an edge keeps it for its readers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from unspoken.channels.kv.codec import GROUP, Codec, decode, encode, layout
from unspoken.channels.kv.geometry import CacheGeometry, ModelIdentity
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.snapshot import Snapshot
from unspoken.channels.kv.state import KVState


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CompressedState:
    """Keys and values through a lossy codec; hidden states and snapshots as they are.

    Attributes:
        codec: The codec.
        layers: Per layer, its stored tensors; see `unspoken.channels.kv.codec.layout`.
        shapes: Per layer, the sizes of its keys and of its values, and the position of its first
            row.
        start, stop: Positions of the first token, and after the last.
        identity: The model that computed it.
        dtype: Element type of keys and values before, and again afterwards.
        hidden: Hidden states at the inputs of some layers.
        raw_bytes: Bytes of the state before.
        snapshots: What recurrent layers have at some positions, as it is.
        hops: Inexact hand-overs in a row that the state's rows came through before.
    """

    codec: Codec
    layers: tuple[Mapping[str, Tensor], ...]
    shapes: tuple[tuple[int, int, int], ...]
    start: int
    stop: int
    identity: ModelIdentity
    dtype: torch.dtype
    hidden: Mapping[int, Tensor]
    raw_bytes: int
    snapshots: tuple[Snapshot, ...] = ()
    hops: int = 0

    def __repr__(self) -> str:
        return (
            f"<CompressedState of positions {self.start} to {self.stop} in {self.codec}, "
            f"of {self.identity.weights[:12]}>"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all that is stored."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        for parts in self.layers:
            yield from parts.values()
        yield from self.hidden.values()
        for snapshot in self.snapshots:
            yield from snapshot.tensors()

    def decompress(self) -> KVState:
        """The state, every row of it rounded, so none of it exact."""
        layers, here = [], next((tensor.device for tensor in self.tensors()), None)
        for parts, (size, value_dim, first) in zip(self.layers, self.shapes, strict=True):
            if not parts:
                layers.append(LayerState.empty(self.stop - first, first, self.dtype, here))
                continue
            keys, values = decode(self.codec, parts, size, self.dtype, value_dim=value_dim)
            layers.append(LayerState(keys, values, first))
        return KVState(
            layers=tuple(layers),
            start=self.start,
            stop=self.stop,
            identity=self.identity,
            approximate_from=self.start,
            hops=self.hops,
            hidden=self.hidden,
            snapshots=self.snapshots,
        )


def compress(state: KVState, codec: Codec) -> CompressedState:
    """A state through a codec, on the device where it is.

    Raises:
        ChannelError: Values that are not finite, or too large for the codec's scales.
    """
    return CompressedState(
        codec=codec,
        layers=tuple(encode(codec, layer) for layer in state.layers),
        shapes=tuple((layer.shape[2], layer.value_dim, layer.first) for layer in state.layers),
        start=state.start,
        stop=state.stop,
        identity=state.identity,
        dtype=state.dtype,
        # A slice shares the memory of the whole, which would be kept for it.
        hidden={layer: tensor.clone() for layer, tensor in state.hidden.items()},
        raw_bytes=state.nbytes,
        snapshots=state.snapshots,
        hops=state.hops,
    )


def compressed_bytes_per_token(codec: Codec, geometry: CacheGeometry, dtype: torch.dtype) -> int:
    """Bytes of keys and values that one token takes over all layers, scales included."""
    rows = 32 * GROUP
    parts = [
        part
        for layer in geometry.layers
        for part in layout(
            codec, layer.kv_heads, rows, layer.head_dim, dtype, value_dim=layer.value_dim
        )
    ]
    return sum(part.nbytes for part in parts) // rows
