"""Several new tokens of one sequence: where their rows go, and what each sees."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unspoken.agents.models.ragged.segment import Segment
from unspoken.channels.kv.transfer import numbers_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a segment's tokens see on layers of one window.

    Attributes:
        first: First position that any of them sees.
        seen: Which rows from there on each token sees, (tokens, rows); None for those up to its
            own, where the rows are the tokens.
    """

    first: int
    seen: Tensor | None


class Stretch:
    """A segment of several tokens in a batch.

    Args:
        segment: The segment.
        device: Where it is.

    Attributes:
        reach: Positions filled once these tokens are.
        tight: Whether the tokens follow each other.
        last: Whether they do, and no row stands after them.
    """

    def __init__(self, segment: Segment, device: torch.device) -> None:
        self.segment, self.device = segment, device
        sequence = segment.sequence
        self.reach = segment.reach
        first = segment.positions[0] - sequence.start
        self.span = slice(first, first + len(segment.ids))
        self.tight = segment.positions[-1] - segment.positions[0] + 1 == len(segment.ids)
        self.last = self.tight and segment.positions[-1] + 1 == self.reach
        self.positions = numbers_at(segment.positions, device)
        self._sights: dict[int | None, Sight] = {}

    def append(self, layer: int, rows: Tensor) -> None:
        """Put rows, keys followed by values, (tokens, 2 * kv_heads, head_dim), at their places."""
        sequence = self.segment.sequence
        buffer = sequence.tails.layers[layer][:, sequence.slot]  # (2, kv_heads, capacity, head_dim)
        new = rows.view(-1, *buffer.shape[:2], buffer.shape[-1]).permute(1, 2, 0, 3)
        if self.tight:
            buffer[:, :, self.span] = new
        else:
            buffer.index_copy_(2, self.positions - sequence.start, new)

    def pieces_of(self, layer: int) -> tuple[list[tuple[Tensor, Tensor]], Sight]:
        """Keys and values that any token sees, and which sees which.

        They are (kv_heads, rows, head_dim) for each piece of memory; what is its own comes last.
        """
        sequence = self.segment.sequence
        window = sequence.geometry.layers[layer].window
        if window not in self._sights:
            self._sights[window] = self._sight(layer, window)
        sight = self._sights[window]
        begin = max(sight.first - sequence.start, 0)
        own = sequence.tails.layers[layer][:, sequence.slot, :, begin : self.reach - sequence.start]
        if sequence.prefix is None or sight.first >= sequence.start:
            return [(own[0], own[1])], sight
        held = sequence.prefix.layers[layer].slice(sight.first, sequence.start)
        return [*held.chunks, (own[0], own[1])], sight

    def _sight(self, layer: int, window: int | None) -> Sight:
        sequence, first = self.segment.sequence, self.segment.positions[0]
        oldest = 0 if window is None else max(first - window + 1, 0)
        if sequence.prefix is not None and oldest < sequence.start:
            oldest = max(oldest, sequence.prefix.layers[layer].first)
        alone = first == oldest == sequence.start and self.tight and self.reach == first + len(self)
        if alone and (window is None or window >= len(self)):
            return Sight(first=oldest, seen=None)
        rows = torch.arange(oldest, self.reach, device=self.device)
        seen = rows <= self.positions[:, None]
        if window is not None:
            seen &= rows > self.positions[:, None] - window
        return Sight(first=oldest, seen=seen)

    def __len__(self) -> int:
        return len(self.segment.ids)
