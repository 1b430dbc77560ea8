"""The tensors of a state, in order, and a state made of others in their places."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unspoken.channels.kv.compressed import CompressedState
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.state import KVState

State = KVState | CompressedState


def tensors_of(state: State) -> tuple[Tensor, ...]:
    """All tensors that a state is made of, layer by layer."""
    return tuple(_tensors(state))


def _tensors(state: State) -> Iterator[Tensor]:
    if isinstance(state, CompressedState):
        yield from state.tensors()
        return
    for layer in state.layers:
        for chunk in layer.chunks if layer.shape[0] else ():
            yield from chunk
    yield from state.hidden.values()
    for snapshot in state.snapshots:
        yield from snapshot.tensors()


def with_tensors(state: State, tensors: Sequence[Tensor]) -> State:
    """The same state over other tensors, which come in the order of `tensors_of`."""
    each = iter(tensors)
    if isinstance(state, CompressedState):
        stored = tuple({name: next(each) for name in parts} for parts in state.layers)
        hidden = {at: next(each) for at in state.hidden}
        snapshots = tuple(one.with_tensors(each) for one in state.snapshots)
        return replace(state, layers=stored, hidden=hidden, snapshots=snapshots)
    # A layer without heads has no element to keep.
    layers = tuple(
        LayerState.joined([LayerState(next(each), next(each), layer.first) for _ in layer.chunks])
        if layer.shape[0]
        else layer
        for layer in state.layers
    )
    hidden = {at: next(each) for at in state.hidden}
    snapshots = tuple(one.with_tensors(each) for one in state.snapshots)
    return replace(state, layers=layers, hidden=hidden, snapshots=snapshots)


def outline_of(state: State) -> State:
    """The same state without its memory: shapes alone, to put tensors into later."""
    bare = [
        torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        for tensor in tensors_of(state)
    ]
    return with_tensors(state, bare)


@dataclass(frozen=True, slots=True)
class View:
    """How a tensor lies in its storage."""

    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "View":
        """The view that a tensor is."""
        return cls(tensor.dtype, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())

    def on(self, storage: torch.UntypedStorage) -> Tensor:
        """The tensor on a storage."""
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        return empty.set_(storage, self.offset, self.shape, self.stride)


def place_of(tensor: Tensor) -> tuple[torch.device, int]:
    """What tells the storage of a tensor from all others that live."""
    return tensor.device, tensor.untyped_storage().data_ptr()
