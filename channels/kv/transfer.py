"""Tensors on their way to another device: many small ones cross as one.

A copy between devices costs a launch and, from pageable memory, a wait, however few its bytes. A
state has two tensors a layer. So what lies side by side in one storage crosses as that stretch of
it, and what does not is packed first. To CUDA it goes through pinned memory, so nothing waits: what
is computed next on that device stands behind the copy in its queue.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_HOST = torch.device("cpu")
_SPARE = 1.25
"""How many times its own bytes a stretch may have to cross as it lies."""


def move(tensors: Sequence[Tensor], devices: Sequence[torch.device]) -> tuple[Tensor, ...]:
    """The same tensors, each on its device: itself where it is there already, otherwise a copy.

    All that goes from one device to another in one dtype crosses in one copy, and the copies are
    views of one storage there. Their strides may be others than before.

    Args:
        tensors: Of any shapes.
        devices: One a tensor, with its index.
    """
    moved = list(tensors)
    groups: dict[tuple[torch.device, torch.dtype, torch.device], list[int]] = {}
    for number, (tensor, device) in enumerate(zip(tensors, devices, strict=True)):
        if tensor.device != device:
            groups.setdefault((tensor.device, tensor.dtype, device), []).append(number)
    for (_, _, device), numbers in groups.items():
        copies = _cross([tensors[number] for number in numbers], device)
        for number, copy in zip(numbers, copies, strict=True):
            moved[number] = copy
    return tuple(moved)


def numbers_at(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Whole numbers of the host as an int64 tensor on a device; on the way to CUDA nothing waits.

    Args:
        values: The numbers, in rows or without.
        device: Where they are wanted.
    """
    if not _pins(_HOST, device):
        return torch.tensor(values, dtype=torch.long, device=device)
    here = torch.tensor(values, dtype=torch.long)
    pinned = _empty(here.numel(), here, pinned=True).view(here.shape)
    return pinned.copy_(here).to(device, non_blocking=True)


def _cross(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of tensors of one device and dtype, which cross to `device` at once."""
    pinned = _pins(tensors[0].device, device)
    stretch = _stretch(tensors)
    if stretch is not None:
        flat = torch.as_strided(tensors[0], (stretch.stop - stretch.start,), (1,), stretch.start)
        if pinned:
            flat = _empty(flat.numel(), flat, pinned=True).copy_(flat)
        there = flat.to(device, non_blocking=pinned)
        return [
            there.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset() - stretch.start)
            for tensor in tensors
        ]
    sizes = [tensor.numel() for tensor in tensors]
    flat = _empty(sum(sizes), tensors[0], pinned=pinned)
    for part, tensor in zip(torch.split(flat, sizes), tensors, strict=True):
        part.view(tensor.shape).copy_(tensor)
    there = flat.to(device, non_blocking=pinned)
    return [
        part.view(tensor.shape)
        for part, tensor in zip(torch.split(there, sizes), tensors, strict=True)
    ]


def _stretch(tensors: list[Tensor]) -> slice | None:
    """The elements of one storage in which all tensors lie; None where most are not theirs."""
    held = [tensor for tensor in tensors if tensor.numel()]
    places = {tensor.untyped_storage().data_ptr() for tensor in held}
    if len(places) != 1 or 0 in places:
        return None
    first = min(tensor.storage_offset() for tensor in held)
    last = max(
        tensor.storage_offset()
        + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        for tensor in held
    )
    wanted = sum(tensor.numel() for tensor in held)
    return slice(first, last + 1) if last + 1 - first <= _SPARE * wanted else None


def _pins(source: torch.device, target: torch.device) -> bool:
    """Whether a copy goes through pinned memory: CUDA alone reads that by itself."""
    return source.type == "cpu" and target.type == "cuda"


def _empty(count: int, like: Tensor, *, pinned: bool) -> Tensor:
    """A flat buffer beside `like`."""
    if pinned:
        return torch.empty(count, dtype=like.dtype, pin_memory=True)
    return torch.empty(count, dtype=like.dtype, device=like.device)
