"""Which sharer token stands for which receiver token of the same text, and where both stand."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from unspoken.channels.base import Arrival, Span, TextSpan
from unspoken.channels.errors import StateError
from unspoken.channels.message import Message


def align(sharer_ends: Sequence[int], receiver_ends: Sequence[int]) -> tuple[int, ...]:
    """For every receiver token the first sharer token that has read all of its text.

    Byte fragments of one character share an end; of sharer tokens with equal ends the last one
    counts, since it alone has seen the whole character.

    Args:
        sharer_ends: Character end of every sharer token, non-decreasing.
        receiver_ends: Character end of every receiver token in the same text, non-decreasing.

    Returns:
        Per receiver token, the index of the first sharer token that ends at or after it; where none
        does, of the last sharer token.

    Raises:
        StateError: There are receiver tokens, but no sharer token.
    """
    if receiver_ends and not sharer_ends:
        raise StateError(
            f"{len(receiver_ends)} receiver tokens have no sharer token to align with",
            expected="at least one token of the text at the sharer",
        )
    return tuple(_reader_of(end, sharer_ends) for end in receiver_ends)


def _reader_of(end: int, sharer_ends: Sequence[int]) -> int:
    first = min(bisect_left(sharer_ends, end), len(sharer_ends) - 1)
    return bisect_right(sharer_ends, sharer_ends[first]) - 1


class Run(NamedTuple):
    """Neighbouring tokens of a message: the first one's position, and where the sharer has them."""

    at: int
    rows: tuple[int, ...]

    @property
    def stop(self) -> int:
        """Position after the last."""
        return self.at + len(self.rows)


def aligned(arrival: Arrival) -> list[Run]:
    """The runs of a message's tokens in a receiver's context, ascending.

    Raises:
        StateError: A segment of the message has no character ends, and tokenizers differ.
    """
    runs = [run for span in arrival.spans for run in _same_tokens(arrival.message, span)]
    runs += [Run(span.at, _same_text(arrival.message, span)) for span in arrival.texts]
    return sorted(run for run in runs if run.rows)


def _same_tokens(message: Message, span: Span) -> Iterator[Run]:
    """The words of a span alone: its turn's wrapper is the receiver's own."""
    for segment in message.segments:
        start, stop = (segment.position + end for end in segment.content)
        rows = range(max(start, span.source), min(stop, span.source + span.length))
        yield Run(span.at + rows.start - span.source, tuple(rows))


def _same_text(message: Message, span: TextSpan) -> tuple[int, ...]:
    segment = message.segments[span.segment]
    if len(segment.ends) != len(segment.words):
        raise StateError(
            f"the message of {message.sharer!r} has {len(segment.words)} tokens and "
            f"{len(segment.ends)} character ends",
            expected="a character end for every token",
            fix="publish it with its codec, or use a text channel",
        )
    first = segment.position + segment.content[0]
    return tuple(first + index for index in align(segment.ends, span.ends))
