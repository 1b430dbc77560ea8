"""Which sharer token stands for which receiver token of the same text."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from unspoken.channels.errors import StateError


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
