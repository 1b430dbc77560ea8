"""Word overlap: which row is nearest to another, and which sentences a question is about."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import log

_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def words_of(text: str) -> frozenset[str]:
    """The different words of a text, in lower case."""
    return frozenset(_WORD.findall(text.lower()))


def nearest(texts: Sequence[str], groups: Sequence[str]) -> list[int | None]:
    """For each text the one of another group that shares most of its words, rare ones first.

    A word counts log(texts / texts with it). What two texts share is taken as a share of all words
    of both, so that a long text is not near to everything.

    Args:
        texts: The texts.
        groups: The group of each.

    Returns:
        An index each; None where all texts are of one group.
    """
    sets = list(map(words_of, texts))
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for number, words in enumerate(sets):
        for word in words:
            holders[word].append(number)
    weight = {word: log(len(texts) / len(found)) for word, found in holders.items()}
    whole = [sum(weight[word] for word in words) for words in sets]
    chosen: list[int | None] = []
    for number, words in enumerate(sets):
        shared: defaultdict[int, float] = defaultdict(float)
        for word in sorted(words):  # sums of floats depend on the order
            if 2 * len(holders[word]) <= len(texts):
                for other in holders[word]:
                    shared[other] += weight[word]
        away = [other for other in range(len(texts)) if groups[other] != groups[number]]
        near = {n: shared[n] / (1 + whole[n] + whole[number] - shared[n]) for n in away}
        chosen.append(max(away, key=near.__getitem__, default=None))
    return chosen


def cut_to(
    texts: Mapping[int, str], question: str, budget: int, count: Callable[[str], int]
) -> dict[int, str]:
    """Texts cut to so many tokens together: the sentences that a question is most about.

    A sentence is worth the question's words in it, each by how few sentences have it. Sentences are
    taken in the order of their worth while they fit, and stand in the order of the text. Where the
    best one does not fit, its beginning is taken.

    Args:
        texts: The texts, by any number.
        question: What they are read for.
        budget: Most tokens of all of them.
        count: Counts the tokens of a text.
    """
    if sum(map(count, texts.values())) <= budget:
        return dict(texts)
    asked = words_of(question)
    parts = [
        (number, part)
        for number, text in texts.items()
        for part in _SENTENCE.split(text)
        if part.strip()
    ]
    sets = [words_of(part) & asked for _, part in parts]
    spread = Counter(word for found in sets for word in found)
    worth = [sum(log(1 + len(parts) / spread[word]) for word in sorted(found)) for found in sets]
    ranked = sorted(range(len(parts)), key=lambda n: (-worth[n], n))
    if ranked and count(parts[ranked[0]][1]) > budget:
        number, part = parts[ranked[0]]
        return {**dict.fromkeys(texts, ""), number: _beginning(part, budget, count)}
    taken, left = set[int](), budget
    for place in ranked:
        tokens = count(parts[place][1])
        if tokens <= left:
            taken.add(place)
            left -= tokens
    return {
        number: " ".join(parts[place][1] for place in sorted(taken) if parts[place][0] == number)
        for number in texts
    }


def _beginning(text: str, budget: int, count: Callable[[str], int]) -> str:
    """The longest beginning in whole words of at most so many tokens."""
    words = text.split()
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        if count(" ".join(words[:middle])) <= budget:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low])
