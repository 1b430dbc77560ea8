"""Which texts share a run of words with others: what was fitted on must not be measured on."""

import re
from collections.abc import Iterable, Iterator, Sequence

RUN = 8
"""Words in a row that two texts may not share."""

_WORD = re.compile(r"\w+")


def sharing(texts: Sequence[str], others: Iterable[str], run: int = RUN) -> frozenset[int]:
    """The numbers of those texts that share `run` words in a row with any of the others.

    Case and punctuation do not count. Memory depends on `texts` alone: the others are read once.
    """
    owners: dict[tuple[str, ...], set[int]] = {}
    for number, text in enumerate(texts):
        for words in _runs(text, run):
            owners.setdefault(words, set()).add(number)
    found: set[int] = set()
    for other in others:
        for words in _runs(other, run):
            found |= owners.get(words, set())
    return frozenset(found)


def _runs(text: str, run: int) -> Iterator[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return zip(*(words[start:] for start in range(run)), strict=False)
