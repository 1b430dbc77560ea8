"""The rows of one layer of a state."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unspoken.channels.kv.rope import Rotary, shift


class LayerState:
    """One layer's keys and values, never changed once made.

    The rows may lie in several pieces of memory, such as those of a prefix that other states share
    and those that were computed after it. Whoever wants them as one tensor gets a copy then.

    Args:
        keys: Rotated keys, shape (kv_heads, rows, head_dim).
        values: Values, (kv_heads, rows, value_dim).
        first: Position of the first row; after the state's start where the layer was trimmed.

    Attributes:
        chunks: The pieces in order, each as keys and values; at least one.
        first: As above.
    """

    __slots__ = ("chunks", "first")

    def __init__(self, keys: Tensor, values: Tensor, first: int) -> None:
        self.chunks: tuple[tuple[Tensor, Tensor], ...] = ((keys, values),)
        self.first = first

    @classmethod
    def joined(cls, parts: Sequence["LayerState"]) -> "LayerState":
        """Layers whose rows follow each other, as one; no row is copied."""
        chunks = tuple(chunk for part in parts for chunk in part.chunks if chunk[0].shape[1])
        made = cls(*parts[0].chunks[0], parts[0].first)
        # Leading parts without rows tell no first position: a window may have left them empty.
        made.first = next((part.first for part in parts if part.rows), parts[-1].first)
        made.chunks = chunks or parts[-1].chunks[-1:]
        return made

    @classmethod
    def empty(
        cls, rows: int, first: int, dtype: torch.dtype, device: torch.device | None = None
    ) -> "LayerState":
        """A layer without heads, which only has a length."""
        nothing = torch.empty(0, rows, 0, dtype=dtype, device=device)
        return cls(nothing, nothing, first)

    def __repr__(self) -> str:
        heads, _, size = self.shape
        about = f"{self.dtype} on {self.device}".removeprefix("torch.")
        return f"<LayerState {(heads, self.rows, size)} from {self.first}, {about}>"

    @property
    def keys(self) -> Tensor:
        """Rotated keys, (kv_heads, rows, head_dim); a copy where the rows lie apart."""
        if len(self.chunks) == 1:
            return self.chunks[0][0]
        return torch.cat([keys for keys, _ in self.chunks], dim=1)

    @property
    def values(self) -> Tensor:
        """Values, (kv_heads, rows, value_dim); a copy where the rows lie apart."""
        if len(self.chunks) == 1:
            return self.chunks[0][1]
        return torch.cat([values for _, values in self.chunks], dim=1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """KV heads, rows and head size."""
        heads, _, size = self.chunks[0][0].shape
        return heads, self.rows, size

    @property
    def value_dim(self) -> int:
        """Size of one head's values, which is mostly that of its keys."""
        return self.chunks[0][1].shape[2]

    @property
    def dtype(self) -> torch.dtype:
        """Element type."""
        return self.chunks[0][0].dtype

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.chunks[0][0].device

    @property
    def rows(self) -> int:
        """Number of tokens this layer holds."""
        return sum(keys.shape[1] for keys, _ in self.chunks)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.chunks)

    def slice(self, start: int, stop: int) -> "LayerState":
        """Those of the rows of positions start … stop - 1 that are there, sharing memory."""
        first = min(max(self.first, start), stop)
        parts, begin = [], self.first
        for keys, values in self.chunks:
            rows = rows_of(begin, start, stop)
            parts.append(LayerState(keys[:, rows], values[:, rows], max(begin, start)))
            begin += keys.shape[1]
        if len(parts) == 1:
            return LayerState(*parts[0].chunks[0], first)
        joined = LayerState.joined(parts)
        joined.first = first
        return joined

    def moved(self, delta: int, rotary: Rotary | None, *, latent: bool = False) -> "LayerState":
        """The same tokens `delta` positions further on: keys rotated, values shared.

        Args:
            delta: Number of positions.
            rotary: How keys are rotated; None where they hold no position.
            latent: Whether the rows are latent: what stands in place of values is rotated.
        """
        made = LayerState(*self.chunks[0], self.first + delta)
        if rotary is None:
            made.chunks = self.chunks
        elif latent:
            made.chunks = tuple(
                (keys, shift(turned, delta, rotary)) for keys, turned in self.chunks
            )
        else:
            made.chunks = tuple((shift(keys, delta, rotary), rows) for keys, rows in self.chunks)
        return made

    def trim(self, window: int | None) -> "LayerState":
        """The last window - 1 rows in memory of their own; the layer itself if it has no more."""
        spare = 0 if window is None else self.rows - (window - 1)
        if spare <= 0:
            return self
        left = self.slice(self.first + spare, self.first + self.rows)
        copied = (
            (left.keys, left.values)
            if len(left.chunks) > 1
            else (left.keys.clone(), left.values.clone())
        )
        return LayerState(*copied, self.first + spare)

    def with_chunks(self, chunks: Sequence[tuple[Tensor, Tensor]]) -> "LayerState":
        """The same rows in other memory: as many pieces, of the same shapes."""
        made = LayerState(*chunks[0], self.first)
        made.chunks = tuple(chunks)
        return made


def rows_of(first: int, start: int, stop: int) -> slice:
    """Positions start … stop - 1 as rows of a tensor whose first row is at position `first`."""
    return slice(max(start - first, 0), max(stop - first, 0))
