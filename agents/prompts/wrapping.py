"""The ids of one turn: words tokenised with their wrapper, quotes with ids of their own."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import lru_cache
from itertools import accumulate

from unspoken.agents.prompts.tokenizer import TextTokenizer
from unspoken.channels.message import Segment

_SHORT = 64
"""Tokens of a text whose places are kept: agents of one workflow read and ask much the same."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece stands among ids.

    Attributes:
        start: Its first token, which may hold some of what stands before it.
        stop: After its last token, which may hold some of what follows.
        own: First and last (exclusive) of those tokens that hold nothing but the piece.
        ends: Per token start … stop - 1, the character of the piece where it ends; empty where that
            is not known.
    """

    start: int
    stop: int
    _: KW_ONLY
    own: tuple[int, int]
    ends: tuple[int, ...]


@dataclass(slots=True)
class _Gap:
    """What stands between two quotes that keep their tokens.

    Attributes:
        before: The template's text before the words.
        left: What stands before all of it; None at the beginning of a context.
        held: What of it the tokens of the quote before hold already.
        words: The words.
        spans: Per piece of the words, its characters.
    """

    before: str
    left: str | None
    held: str = ""
    words: str = ""
    spans: list[tuple[int, int]] = field(default_factory=list)

    def add(self, words: str) -> None:
        """Append a piece."""
        rest = words
        if self.held and words:
            rest = words.removeprefix(self.held)
            self.held = ""
        self.spans.append((len(self.words), len(self.words) + len(rest)))
        self.words += rest

    def begin_behind(self, behind: str) -> str:
        """The template's text behind, without what a quote's tokens hold of it."""
        return behind.removeprefix(self.held) if self.held and not self.words else behind

    def end_before(self, held: str) -> None:
        """Leave the end to the tokens of a quote that hold it too."""
        if not held or not (self.before + self.words).endswith(held):
            return
        of_words = min(len(held), len(self.words))
        self.words = self.words[: len(self.words) - of_words]
        self.before = self.before[: len(self.before) - (len(held) - of_words)]
        size = len(self.words)
        self.spans = [(min(a, size), min(b, size)) for a, b in self.spans]


def wrapped(
    text: TextTokenizer,
    pieces: Sequence[str | Segment],
    *,
    before: str,
    behind: str,
    after: str | None,
) -> tuple[tuple[int, ...], list[Place]]:
    """Ids of pieces in a wrapper, and where each piece stands in them.

    Args:
        text: The tokenizer.
        pieces: Words, in which markers stay letters, and segments whose words keep their ids.
        before: What the template writes before them.
        behind: What it writes behind them.
        after: What stands before all of that; None at the beginning of a context.
    """
    ids: list[int] = []
    places: list[Place] = []
    gap = _Gap(before, after)
    for piece in pieces:
        if isinstance(piece, str):
            gap.add(piece)
            continue
        held_before, held_behind = text.around(piece.words, piece.text)
        gap.end_before(held_before)
        places += _tokenised(text, ids, gap, "")
        here = len(ids), len(ids) + len(piece.words)
        places.append(Place(*here, own=here, ends=piece.ends))
        ids += piece.words
        gap = _Gap("", (piece.text + held_behind)[-16:], held_behind)
    places += _tokenised(text, ids, gap, behind)
    return tuple(ids), places


def _tokenised(text: TextTokenizer, ids: list[int], gap: _Gap, behind: str) -> list[Place]:
    """Append the tokens of what stands between quotes; where its pieces stand in the ids."""
    base, shift = len(ids), len(gap.before)
    tokens, offsets = text.words_with_offsets(
        gap.words, before=gap.before, behind=gap.begin_behind(behind), after=gap.left
    )
    ids += tokens
    spans = [(shift + start, shift + stop) for start, stop in gap.spans]
    if len(offsets) <= _SHORT:
        return list(_known_places(offsets, tuple(spans), base))
    return [_place(offsets, *span, base) for span in spans]


@lru_cache(1024)
def _known_places(
    offsets: tuple[tuple[int, int], ...], spans: tuple[tuple[int, int], ...], base: int
) -> tuple[Place, ...]:
    return tuple(_place(offsets, *span, base) for span in spans)


def _place(offsets: Sequence[tuple[int, int]], first: int, last: int, base: int) -> Place:
    """Where characters first … last - 1 of a text stand, its tokens beginning at `base`."""
    start = sum(end <= first for _, end in offsets)
    stop = max(start, sum(begin < last for begin, _ in offsets))
    here = range(start, stop)
    own_start = next((n for n in here if offsets[n][0] >= first), stop)
    own_stop = next((n + 1 for n in reversed(here) if offsets[n][1] <= last), own_start)
    ends = accumulate((min(max(offsets[n][1], first), last) - first for n in here), max)
    own = base + own_start, base + max(own_start, own_stop)
    return Place(base + start, base + stop, own=own, ends=tuple(ends))


def joined_ends(places: Sequence[Place], sizes: Sequence[int]) -> tuple[int, ...]:
    """Where in a turn's text the tokens of its pieces end; empty where a piece does not know.

    Args:
        places: Where each piece stands.
        sizes: Characters of each piece.
    """
    if any(len(place.ends) != place.stop - place.start for place in places):
        return ()
    ends = [0] * (places[-1].stop - places[0].start)
    before = 0
    for size, place in zip(sizes, places, strict=False):
        for index, end in enumerate(place.ends, place.start - places[0].start):
            ends[index] = before + end
        before += size
    return tuple(accumulate(ends, max))
