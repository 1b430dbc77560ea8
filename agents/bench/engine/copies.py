"""How many times rows of a cache stand in memory, counted in the memory itself.

No engine is asked. Every storage that any tensor of the process keeps alive is searched for the
numbers of one row of keys, so a copy counts wherever it is, and a storage that many share counts
once.
"""

import gc
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from unspoken.channels.kv.state import KVState

__all__ = ["count_copies", "sample_row"]

TOLERANCE = 1e-4


def sample_row(state: KVState, position: int) -> Tensor:
    """The keys of one position in one head of the first layer that has them, (head_dim,).

    The copy stands at the end of a little memory of its own, which `count_copies` leaves out.
    """
    layer = next(layer for layer in state.layers if layer.first <= position)
    keys, _ = layer.slice(position, position + 1).chunks[0]
    return keys[0, 0].clone()


@torch.no_grad()
def count_copies(row: Tensor) -> int:
    """How many times the numbers of a row stand one after another in this process's tensors.

    Args:
        row: The row, (head_dim,), in memory of its own, which does not count. Rows that were
            computed again count too: they differ by rounding alone.
    """
    return sum(_occurrences(flat, row) for flat in _memories(row))


def _tensors() -> list[Tensor]:
    """All tensors that Python holds, parameters of models left out.

    No other thread may run while all objects are listed: a tuple that it is building would be among
    them, and cannot be finished while others refer to it.
    """
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60.0)
    try:
        time.sleep(0.02)  # threads that wait already ask once more by the old interval
        # Not isinstance: it asks objects that answer for others.
        found = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    finally:
        sys.setswitchinterval(interval)
    return [tensor for tensor in found if not isinstance(tensor, torch.nn.Parameter)]


def _memories(row: Tensor) -> Iterator[Tensor]:
    """All memory of the row's type and device, each storage once, (elements,)."""
    seen = {row.untyped_storage().data_ptr()}
    for tensor in _tensors():
        alike = (tensor.dtype, tensor.device) == (row.dtype, row.device)
        if tensor.layout != torch.strided or not alike:
            continue
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() < row.nbytes:
            continue
        seen.add(storage.data_ptr())
        size = storage.nbytes() // row.element_size()
        yield torch.empty(0, dtype=row.dtype, device=row.device).set_(storage, 0, (size,), (1,))


def _occurrences(flat: Tensor, row: Tensor) -> int:
    width = len(row)
    near = (flat[: len(flat) - width + 1] - row[0]).abs() <= TOLERANCE
    starts = near.nonzero()[:, 0]
    if not len(starts):
        return 0
    places = starts[:, None] + torch.arange(width, device=row.device)
    return int(((flat[places] - row).abs() <= TOLERANCE).all(dim=1).sum())
