"""Sequences that go on by one token each: where their rows go, and what each sees."""

from collections.abc import Sequence as Listed
from dataclasses import dataclass

import torch
from torch import Tensor

from unspoken.agents.models.ragged.segment import Segment
from unspoken.agents.models.ragged.sequence import Sequence
from unspoken.channels.kv.transfer import numbers_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows of a prefix that lie in one piece of memory and that the same sequences have.

    Attributes:
        owner: A sequence that has them.
        chunk: Number of the piece in the layers of that sequence's prefix.
        within: Which of the piece's rows.
        columns: Columns of the scores that they take.
        rows: The sequences that have them, (rows,); None for all.
    """

    owner: Sequence
    chunk: int
    within: slice
    columns: slice
    rows: Tensor | None

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (kv_heads, columns, head_dim) each."""
        assert self.owner.prefix is not None
        keys, values = self.owner.prefix.layers[layer].chunks[self.chunk]
        if self.within == slice(0, keys.shape[1]):
            return keys, values
        return keys[:, self.within], values[:, self.within]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What rows see on layers of one window.

    Attributes:
        pieces: Pieces of prefixes.
        columns: Columns of the scores that those take.
        hidden: Columns that a row does not see, (rows, columns); None where each sees all.
    """

    pieces: tuple[Piece, ...]
    columns: int
    hidden: Tensor | None


class DecodeRows:
    """Sequences in tails of one capacity that go on by one token each, by ascending slot.

    Args:
        segments: Their new tokens.
        device: Where they are.
    """

    def __init__(self, segments: Listed[Segment], device: torch.device) -> None:
        self.segments, self.device = segments, device
        sequences = [segment.sequence for segment in segments]
        self.tails, self.geometry = sequences[0].tails, sequences[0].geometry
        slots = [sequence.slot for sequence in sequences]
        self.slots = slice(slots[0], slots[-1] + 1)
        self.dense = len(slots) == self.slots.stop - self.slots.start
        self.ends = [sequence.length - sequence.start for sequence in sequences]
        self.longest = max(self.ends) + 1
        self.where = None if self.dense else self._tensor([slot - slots[0] for slot in slots])
        self._places: dict[int, Tensor] = {}
        self._own: list[tuple[Tensor, Tensor]] | None = None
        self._views: dict[int | None, View] = {}

    def __len__(self) -> int:
        return len(self.segments)

    def _tensor(self, values: Listed[int]) -> Tensor:
        return numbers_at(values, self.device)

    def append(self, layer: int, rows: Tensor) -> None:
        """Put a row each, keys followed by values, (rows, 2 * kv_heads, head_dim), at the end of
        what is a row's own.
        """
        buffer = self.tails.layers[layer]
        _, slots, kv_heads, capacity, size = buffer.shape
        if kv_heads not in self._places:
            firsts = [
                (segment.sequence.slot * kv_heads * capacity) + end
                for segment, end in zip(self.segments, self.ends, strict=True)
            ]
            heads = torch.arange(kv_heads, device=self.device)
            both = torch.cat((heads, heads + slots * kv_heads)) * capacity  # of keys, of values
            self._places[kv_heads] = (self._tensor(firsts)[:, None] + both).flatten()
        buffer.view(-1, size).index_copy_(0, self._places[kv_heads], rows.reshape(-1, size))

    def own(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys of all slots in between, (slots * kv_heads, head_dim, longest), and their values,
        (slots * kv_heads, longest, head_dim).
        """
        if self._own is None:
            self._own = self.tails.part(self.slots, self.longest)
        return self._own[layer]

    def view_of(self, layer: int) -> View:
        """What the rows see on a layer; alike on all layers of one window."""
        window = self.geometry.layers[layer].window
        if window not in self._views:
            self._views[window] = self._view(window)
        return self._views[window]

    def _view(self, window: int | None) -> View:
        sequences = [segment.sequence for segment in self.segments]
        oldest = [0 if window is None else max(s.length - window + 1, 0) for s in sequences]
        base = min(oldest)
        firsts = list(oldest)
        # Beginnings of one piece of memory may end at different rows of it.
        held: dict[tuple[object, int], list[tuple[int, int, int]]] = {}
        for row, sequence in enumerate(sequences):
            if oldest[row] >= sequence.start:
                continue
            runs = sequence.runs[window]
            firsts[row] = max(oldest[row], runs[0].begin)
            for number, run in enumerate(runs):
                if run.end > base:
                    held.setdefault((run.memory, run.begin), []).append((run.end, row, number))
        pieces = []
        for (_, begin), holders in held.items():
            start = max(begin, base)
            for end in sorted({end for end, _, _ in holders}):
                having = [(row, number) for other, row, number in holders if other >= end]
                rows = [row for row, _ in having]
                pieces.append(
                    Piece(
                        owner=sequences[rows[0]],
                        chunk=having[0][1],
                        within=slice(start - begin, end - begin),
                        columns=slice(start - base, end - base),
                        rows=None if len(rows) == len(sequences) else self._tensor(rows),
                    )
                )
                start = end
        columns = max((piece.columns.stop for piece in pieces), default=0)
        return View(
            pieces=tuple(pieces),
            columns=columns,
            hidden=self._hidden(firsts, oldest, base, columns),
        )

    def _hidden(
        self, firsts: list[int], oldest: list[int], base: int, columns: int
    ) -> Tensor | None:
        """Columns outside of what a row sees: of the prefix, then of what is its own."""
        bounds = []
        for segment, first, old, end in zip(self.segments, firsts, oldest, self.ends, strict=True):
            start = segment.sequence.start
            stop = max(start - base, 0)
            bounds.append(
                (min(first - base, stop), stop, columns + max(old - start, 0), columns + end + 1)
            )
        width = columns + self.longest
        if all(bound == (0, columns, columns, width) for bound in bounds):
            return None
        limits = numbers_at(bounds, self.device)[:, :, None]
        column = torch.arange(width, device=self.device)
        prefix = (column >= limits[:, 0]) & (column < limits[:, 1])
        own = (column >= limits[:, 2]) & (column < limits[:, 3])
        return ~(prefix | own)
