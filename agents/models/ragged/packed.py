"""Tokens of several sequences, packed for one forward."""

from collections.abc import Sequence as Listed

import torch
from torch import Tensor

from unspoken.agents.models.ragged.decode_rows import DecodeRows
from unspoken.agents.models.ragged.segment import Segment
from unspoken.agents.models.ragged.stretch import Stretch
from unspoken.channels.kv.geometry import CacheGeometry
from unspoken.channels.kv.transfer import numbers_at


class Packed:
    """Segments of one model in one forward: rows of one token first, then the others.

    Args:
        segments: The segments, of different sequences.
        geometry: The model's.
        device: Where it computes.

    Attributes:
        segments: The segments in the order in which their tokens are packed.
        groups: Rows of one token by their tails, each with its place among the tokens.
        stretches: Segments of several tokens, each with its place.
        layers_seen: How many layers asked for attention.
        ignored: Tensors that they gave it and that it does not know.
    """

    def __init__(
        self, segments: Listed[Segment], geometry: CacheGeometry, device: torch.device
    ) -> None:
        self.geometry, self.device = geometry, device
        self.layers_seen = 0
        self.ignored: set[str] = set()
        by_tails: dict[int, list[Segment]] = {}
        others = []
        for segment in segments:
            if len(segment.ids) == 1 and segment.follows:
                by_tails.setdefault(id(segment.sequence.tails), []).append(segment)
            else:
                others.append(segment)
        rows = [sorted(group, key=lambda s: s.sequence.slot) for group in by_tails.values()]
        self.groups: list[tuple[slice, DecodeRows]] = []
        self.stretches: list[tuple[slice, Stretch]] = []
        start = 0
        for group in rows:
            self.groups.append((slice(start, start + len(group)), DecodeRows(group, device)))
            start += len(group)
        for segment in others:
            place = slice(start, start + len(segment.ids))
            self.stretches.append((place, Stretch(segment, device)))
            start = place.stop
        self.segments = [*(segment for group in rows for segment in group), *others]
        tokens = [
            pair
            for segment in self.segments
            for pair in zip(segment.ids, segment.positions, strict=True)
        ]
        both = numbers_at(tokens, device)
        self.ids, self.positions = both[:, 0].contiguous(), both[:, 1].contiguous()

    def append(self, layer: int, rows: Tensor) -> None:
        """Put the rows of all tokens where they belong.

        Args:
            layer: The layer's number.
            rows: Keys followed by values, (tokens, 2 * kv_heads, head_dim).
        """
        for place, decoding in self.groups:
            decoding.append(layer, rows[place])
        for place, stretch in self.stretches:
            stretch.append(layer, rows[place])

    def wanted(self) -> list[int]:
        """Places of the tokens after which logits are wanted."""
        places, start = list[int](), 0
        for segment in self.segments:
            stop = start + len(segment.ids)
            places.extend(range(stop - segment.wanted, stop))
            start = stop
        return places

    def filled(self) -> None:
        """The forward is done: the sequences have their rows."""
        for segment in self.segments:
            segment.sequence.length = segment.reach
