"""Where an answer begins, whatever tokens the end of the thoughts is written in."""

from collections.abc import Sequence
from itertools import accumulate

import pytest

from unspoken.agents.prompts.thoughts import Split, Thoughts, split_thoughts


class Pieces:
    """A reader of ids that number pieces of a text, none of which is a marker."""

    markers: frozenset[int] = frozenset()

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def encode(self, text: str, after: str | None = None) -> tuple[int, ...]:
        return tuple(ord(letter) for letter in text)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[one] for one in ids)


@pytest.mark.parametrize(
    ("pieces", "answer"),
    [
        (("key", "</think", ">\n\n", "Ada"), 3),
        (("key", "</think", ">Ada", " L"), 2),
        (("key", "</think>", "\n", "Ada"), 3),
    ],
)
def test_an_answer_does_not_begin_in_the_marker(pieces: tuple[str, ...], answer: int) -> None:
    """A token across the marker's end is the answer's only where words stand in its rest."""
    reader, text = Pieces(*pieces), "".join(pieces)
    thoughts = Thoughts(opening="<think>", closing="</think>", opened=True)
    ids, ends = range(len(pieces)), tuple(accumulate(map(len, pieces)))
    split = split_thoughts(thoughts, reader, ids, ends, text)
    assert split == Split(answer, text.index("Ada"))
