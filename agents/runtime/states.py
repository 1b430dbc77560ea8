"""What the scheduler holds instead of tensors: handles to states that live until their last reader
has read them.
"""

from dataclasses import dataclass
from itertools import count

from unspoken.channels.kv.compressed import CompressedState
from unspoken.channels.kv.state import KVState

__all__ = ["StateRef", "StateStore"]


@dataclass(frozen=True, slots=True)
class StateRef:
    """A ticket for a state on a shelf."""

    number: int


@dataclass(slots=True)
class _Entry:
    state: KVState | CompressedState
    readers: int


class StateStore:
    """States of one run, shared by reference, freed when nobody waits for them.

    Attributes:
        bytes_held: Bytes of the states held now; a state that views another's memory counts in
            full.
        peak_bytes: The most that was held at a time.
    """

    def __init__(self) -> None:
        self._entries: dict[StateRef, _Entry] = {}
        self._numbers = count()
        self.bytes_held = 0
        self.peak_bytes = 0

    def put(self, state: KVState | CompressedState, readers: int) -> StateRef:
        """Keep a state for `readers` readers."""
        handle = StateRef(next(self._numbers))
        self._entries[handle] = _Entry(state, readers)
        self.bytes_held += state.nbytes
        self.peak_bytes = max(self.peak_bytes, self.bytes_held)
        return handle

    def get(self, handle: StateRef) -> KVState | CompressedState:
        """The state of a handle that has not been released by all its readers."""
        return self._entries[handle].state

    def release(self, handle: StateRef) -> None:
        """One reader is done; the last one frees the state."""
        entry = self._entries[handle]
        entry.readers -= 1
        if entry.readers <= 0:
            del self._entries[handle]
            self.bytes_held -= entry.state.nbytes

    def clear(self) -> None:
        """Free every state, whoever was to read it."""
        self._entries.clear()
        self.bytes_held = 0

    def __len__(self) -> int:
        return len(self._entries)
