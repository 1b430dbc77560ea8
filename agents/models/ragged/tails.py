"""Rows that one sequence alone has: the slots of a padded buffer, one buffer a capacity."""

from threading import Lock

import torch
from torch import Tensor

from unspoken.channels.kv.geometry import CacheGeometry

_SMALLEST = 64

_SMALL = 1 << 26
"""Bytes up to which a buffer doubles: copying it is cheap, and what it spares is little."""


def capacity_of(rows: int) -> int:
    """The capacity that serves so many rows: 64, 96, 128, 192, 256, … so that few differ."""
    capacity = _SMALLEST
    while capacity < rows:
        if capacity + capacity // 2 >= rows and capacity >= _SMALLEST:
            return capacity + capacity // 2
        capacity *= 2
    return capacity


class Tails:
    """Slots of equal capacity; rows of sequences that decode together lie in one tensor.

    A buffer grows when all slots are taken, and goes when none is. Nothing outside keeps a view
    of it for longer than one forward, so that it may move.

    Args:
        geometry: The shape of the rows.
        capacity: Rows of a slot.
        dtype: Element type.
        device: Where they are.

    Attributes:
        layers: Per layer, (2, slots, kv_heads, capacity, head_dim): keys, then values.
    """

    def __init__(
        self, geometry: CacheGeometry, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.geometry, self.capacity = geometry, capacity
        self.dtype, self.device = dtype, device
        self.layers: tuple[Tensor, ...] = ()
        self._slab: Tensor | None = None
        self._slots = 0
        self._taken: set[int] = set()
        self._written: set[int] = set()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._taken)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return sum(layer.nbytes for layer in self.layers)

    def take(self) -> int:
        """A slot; whoever takes one must have the weights to himself, since the buffer may move."""
        with self._lock:
            if len(self._taken) == self._slots:
                self._resize(self._slots + self._more())
            slot = next(slot for slot in range(self._slots) if slot not in self._taken)
            self._taken.add(slot)
            if slot in self._written:
                for layer in self.layers:
                    layer[:, slot] = 0
            self._written.add(slot)
            return slot

    def give_back(self, slot: int) -> None:
        """Let a slot go; the buffer goes with the last one."""
        with self._lock:
            self._taken.discard(slot)
            if not self._taken:
                self.layers, self._slab, self._slots = (), None, 0
                self._written.clear()

    def copy_of(self, slot: int, rows: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values per layer of a slot's first rows, (kv_heads, rows, head_dim) each.

        They are views of one new slab where all layers have one shape, so that a state crosses
        devices in one copy.
        """
        if self._slab is not None:
            slab = self._slab[:, :, slot, :, :rows].clone(memory_format=torch.contiguous_format)
            return [(slab[at, 0], slab[at, 1]) for at in range(len(self.layers))]
        parts = [layer[:, slot, :, :rows].clone() for layer in self.layers]
        return [(part[0], part[1]) for part in parts]

    def part(self, slots: slice, rows: int) -> list[tuple[Tensor, Tensor]]:
        """The first rows of some slots, per layer: views that go with the next `take`.

        Returns:
            Keys, (slots * kv_heads, head_dim, rows), and values, (slots * kv_heads, rows,
            head_dim).
        """
        if self._slab is not None:  # a view of each layer would take as long as its product
            keys, values = self._slab[:, :, slots, :, :rows].flatten(2, 3).unbind(1)
            return list(zip(keys.transpose(2, 3).unbind(0), values.unbind(0), strict=True))
        both = [layer[:, slots, :, :rows].flatten(1, 2) for layer in self.layers]
        return [(keys.transpose(1, 2), values) for keys, values in both]

    def _more(self) -> int:
        """Slots to add: as many as there are while they are small, then a quarter as many."""
        few = self.nbytes <= _SMALL
        return max(1, self._slots if few else self._slots // 4)

    def _resize(self, slots: int) -> None:
        before, kept = self.layers, self._slots
        shapes = [(layer.kv_heads, layer.head_dim) for layer in self.geometry.layers]
        # Zeros, as in a slot that had another row: what a masked row holds is multiplied by 0, and
        # must not be a NaN.
        if len(set(shapes)) == 1:
            heads, size = shapes[0]
            self._slab = self._zeros(len(shapes), 2, slots, heads, self.capacity, size)
            self.layers = tuple(self._slab)
        else:
            self.layers = tuple(
                self._zeros(2, slots, heads, self.capacity, size) for heads, size in shapes
            )
        for old, new in zip(before, self.layers, strict=False):
            new[:, :kept] = old
        self._slots = slots

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)


class TailPool:
    """The tails of one model's sequences, by capacity.

    Args:
        geometry: The shape of its rows.
    """

    def __init__(self, geometry: CacheGeometry) -> None:
        self.geometry = geometry
        self._tails: dict[tuple[int, torch.dtype, torch.device], Tails] = {}

    def of(self, rows: int, dtype: torch.dtype, device: torch.device) -> Tails:
        """The tails whose slots have room for so many rows."""
        key = (capacity_of(rows), dtype, device)
        if key not in self._tails:
            self._tails[key] = Tails(self.geometry, *key)
        return self._tails[key]

    @property
    def taken(self) -> int:
        """Slots in use."""
        return sum(len(tails) for tails in self._tails.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(tails.nbytes for tails in self._tails.values())
