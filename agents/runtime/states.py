"""The states of a run: kept by content, counted by memory, freed by the last ticket."""

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from unspoken.agents.engines.base import Form, StateRef
from unspoken.channels.kv.compressed import CompressedState
from unspoken.channels.kv.state import KVState

__all__ = ["HeldState", "StateRef", "StateStore", "StoreStatistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldState:
    """A state that is kept.

    Attributes:
        holders: Who holds tickets for it, one entry a ticket.
        tokens: Number of tokens.
        nbytes: Bytes of its rows; what it shares with other states counts here too.
    """

    holders: tuple[str, ...]
    tokens: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatistics:
    """What a store holds.

    Attributes:
        bytes_held: Bytes of the memory that all states together keep alive, each storage once.
        peak_bytes: The most that was so at a time.
        states: The states and who holds them.
    """

    bytes_held: int
    peak_bytes: int
    states: tuple[HeldState, ...]


@dataclass(slots=True)
class _Entry:
    state: KVState | CompressedState
    key: Hashable
    serial: int
    holders: dict[StateRef, str] = field(default_factory=dict)


class StateStore:
    """States by content: who puts an equal one gets a ticket for the one that is there.

    Exact states of one model over the same ids are equal. Approximate ones are equal only where
    they are the very same rows in memory. Views of one buffer keep the whole buffer alive, so bytes
    are counted by storage, and a storage that several states share counts once.

    Attributes:
        bytes_held: Bytes of memory that the states keep alive.
        peak_bytes: The most that was so at a time.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, _Entry] = {}
        self._tickets: dict[StateRef, _Entry] = {}
        self._storages: Counter[tuple[str, int]] = Counter()
        self._numbers = count()
        self.bytes_held = 0
        self.peak_bytes = 0

    def put(
        self,
        state: KVState | CompressedState,
        ids: tuple[int, ...],
        holder: str = "",
        source: tuple[StateRef, Form] | None = None,
    ) -> StateRef:
        """Keep a state.

        Args:
            state: The state.
            ids: Token ids of its context, from position 0 to its last token.
            holder: Who will read it, for `statistics`.
            source: The state it was made from, and in what form, where a copy was made.
        """
        key = _content_key(state, ids) if source is None else self._form_key(*source)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = _Entry(state, key, next(self._numbers))
            self._count(state, 1)
            self.peak_bytes = max(self.peak_bytes, self.bytes_held)
        return self._ticket(entry, holder)

    def derived(self, source: StateRef, form: Form, holder: str = "") -> StateRef | None:
        """A ticket for what was made of a state in this form before, where it is there still."""
        entry = self._entries.get(self._form_key(source, form))
        return None if entry is None else self._ticket(entry, holder)

    def _form_key(self, source: StateRef, form: Form) -> Hashable:
        entry = self._tickets[source]
        # The key of an approximate state names its memory, which others may have later.
        exact = isinstance(entry.state, KVState) and entry.state.exact
        return ("form", form, entry.key if exact else entry.serial)

    def _ticket(self, entry: _Entry, holder: str) -> StateRef:
        ref = StateRef(next(self._numbers))
        entry.holders[ref] = holder
        self._tickets[ref] = entry
        return ref

    def get(self, ref: StateRef) -> KVState | CompressedState:
        """The state of a ticket; a KeyError where it was given back."""
        return self._tickets[ref].state

    def release(self, ref: StateRef) -> None:
        """Give a ticket back; the last one frees the state."""
        entry = self._tickets.pop(ref)
        del entry.holders[ref]
        if not entry.holders:
            del self._entries[entry.key]
            self._count(entry.state, -1)

    def clear(self) -> None:
        """Free every state, whoever was to read it."""
        self._entries.clear()
        self._tickets.clear()
        self._storages.clear()
        self.bytes_held = 0

    def statistics(self) -> StoreStatistics:
        """What is held now, and by whom."""
        return StoreStatistics(
            bytes_held=self.bytes_held,
            peak_bytes=self.peak_bytes,
            states=tuple(
                HeldState(
                    holders=tuple(entry.holders.values()),
                    tokens=entry.state.stop - entry.state.start,
                    nbytes=entry.state.nbytes,
                )
                for entry in self._entries.values()
            ),
        )

    def __len__(self) -> int:
        return len(self._entries)

    def _count(self, state: KVState | CompressedState, change: int) -> None:
        """Count a state's storages in or out."""
        sizes = {_place(tensor): tensor.untyped_storage().nbytes() for tensor in _tensors(state)}
        for place, size in sizes.items():
            before = self._storages[place]
            self._storages[place] = before + change
            if not before or before + change == 0:
                self.bytes_held += change * size


def _tensors(state: KVState | CompressedState) -> Iterator[Tensor]:
    if isinstance(state, CompressedState):
        yield from state.tensors()
        return
    for layer in state.layers:
        for chunk in layer.chunks:
            yield from chunk
    yield from state.hidden.values()


def _place(tensor: Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _content_key(state: KVState | CompressedState, ids: tuple[int, ...]) -> Hashable:
    """Equal for states that may serve for each other."""
    device: torch.device | None = None
    if isinstance(state, CompressedState):
        rows: Hashable = (state.codec, *(first for _, first in state.shapes))
    else:
        rows, device = tuple(layer.first for layer in state.layers), state.device
    shape = (state.identity, state.dtype, device, state.start, state.stop, rows)
    if isinstance(state, KVState) and state.exact:
        hidden = tuple(sorted((at, len(tensor)) for at, tensor in state.hidden.items()))
        return ("exact", shape, hidden, ids[: state.stop])
    return ("rows", shape, tuple((*_place(t), t.storage_offset()) for t in _tensors(state)))
