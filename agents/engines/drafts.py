"""Guesses at the next tokens, looked up in the context (prompt lookup decoding).

An agent that quotes what it has read writes runs of tokens that stand in its context already. The
tokens that followed the last ones there are computed together with the last one. Those that the
model would have written are kept, so a step gives several tokens, and they are the same tokens.
"""

from collections.abc import Sequence

LONGEST = 4
"""Most tokens of a guess: with more, a wrong one costs more than a right one brings."""

RUNS = (3, 2)
"""Lengths of the runs that are looked up, the longer first."""

LEAST = 0.25
"""Guesses of which fewer tokens a step are right do not pay in any case."""

MEMORY = 0.8
"""How much of the average of earlier guesses stays, guess by guess."""

REST = 16
"""Steps without guesses after they have not paid; twice as many each time."""


class Drafter:
    """Guesses for one turn.

    Its runs are noted when the first guess is asked for: many turns are over before, or have too
    much company.

    Args:
        ids: The ids of the context.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = list(ids)
        self._after: dict[tuple[int, ...], int] = {}
        self._noted = 0
        self._right, self._rest, self._pause = 1.0, REST, 0
        self._plain = self._guessed = 0.0

    def push(self, token: int) -> None:
        """A token follows."""
        self._ids.append(token)

    def _note(self) -> None:
        """Note the runs whose next token is there; so the last tokens never find themselves."""
        ids = self._ids
        for end in range(self._noted, len(ids)):
            for length in RUNS:
                if end >= length:
                    self._after[tuple(ids[end - length : end])] = end
        self._noted = len(ids)

    def guess(self, most: int) -> tuple[int, ...]:
        """Up to so many tokens that may follow; none where guesses do not pay for now."""
        if self._pause:
            self._pause -= 1
            return ()
        if most < 1:
            return ()
        self._note()
        for length in RUNS:
            start = self._after.get(tuple(self._ids[-length:]))
            if start is not None:
                return tuple(self._ids[start : start + min(most, LONGEST)])
        return ()

    def learn(self, right: int | None, seconds: float) -> None:
        """How long a step took, and how many tokens of its guess were right; None for no guess.

        Guesses pay while they bring more tokens a second than steps without them.
        """
        if right is None:
            self._plain = _smoothed(self._plain, seconds)
            return
        self._right = MEMORY * self._right + (1 - MEMORY) * right
        self._guessed = _smoothed(self._guessed, seconds)
        slow = self._plain and self._guessed > (1 + self._right) * self._plain
        if slow or self._right < LEAST:
            self._pause, self._rest = self._rest, 2 * self._rest
            self._right = 1.0


def _smoothed(average: float, value: float) -> float:
    return value if not average else MEMORY * average + (1 - MEMORY) * value
