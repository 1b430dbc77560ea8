"""The events of a run, as they are kept: a person may look at them again.

Of a turn's words there is one event, and of its prefill none. A run that goes on tells of its first
turns again; what is kept already is not kept twice.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

_NAMES = ("event", "path", "agent", "turn", "item", "from", "to", "id", "attempt", "workflow")

Place = tuple[tuple[str, ...], str, int, int | None]
"""Whose words they are: path, agent, turn and item."""


class Told:
    """Events that wait for the next turn to end; they are written down with it.

    Args:
        kept: The events that are kept already, as JSON texts.
    """

    def __init__(self, kept: Sequence[str] = ()) -> None:
        self._known = Counter(_key(json.loads(text)) for text in kept)
        self._next = len(kept)
        self._words: dict[Place, list[str]] = {}
        self._waiting: list[tuple[int, str]] = []

    def words(self, place: Place, text: str) -> None:
        """Take words that a turn has written; with its end they are one event."""
        self._words.setdefault(place, []).append(text)

    def forget_words(self, place: Place) -> None:
        """Take back the words of a turn that failed."""
        self._words.pop(place, None)

    def words_of(self, place: Place) -> str | None:
        """All words of a turn, once; None where it has told of none."""
        words = self._words.pop(place, None)
        return None if words is None else "".join(words)

    def note(self, event: Mapping[str, Any]) -> None:
        """Take an event as plain data."""
        if self._known:
            key = _key(event)
            if self._known[key]:
                self._known[key] -= 1
                return
        self._waiting.append((self._next, json.dumps(event, ensure_ascii=False)))
        self._next += 1

    def take(self) -> list[tuple[int, str]]:
        """The events since the last call, each with its number."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def put_back(self, taken: Sequence[tuple[int, str]]) -> None:
        """Take events back that may not have been written down."""
        self._waiting = [*taken, *self._waiting]


def _key(event: Mapping[str, Any]) -> tuple[object, ...]:
    """What tells events apart that a run and its continuation both tell of."""
    inner = event.get("call") or event.get("question") or {}
    values = (event.get(name) for name in _NAMES)
    told = (tuple(value) if isinstance(value, list) else value for value in values)
    asked = tuple(one["id"] for one in event.get("questions") or ())
    return (*told, inner.get("id"), asked)
