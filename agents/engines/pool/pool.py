"""The pool: the one keeper of states of a run or a session.

States are kept by content: who puts an equal one gets a ticket for the one that is there. Exact
states of one model over the same ids are equal. Approximate ones are equal only where they are the
very same rows in memory.

A state is needed while there are tickets for it. In a session it stays afterwards too, in case a
later turn begins as it does, until others need the room.
"""

from collections.abc import Hashable, Set
from dataclasses import asdict
from itertools import count
from pathlib import Path
from threading import RLock

import torch

from unspoken.agents.engines.base import Form, PrefixQuery, StateRef
from unspoken.agents.engines.pool.admission import AdmissionQueue
from unspoken.agents.engines.pool.blocks import UNKNOWN, Block, Blocks, Entry, blocks_of
from unspoken.agents.engines.pool.budget import Budget
from unspoken.agents.engines.pool.disk import Disk
from unspoken.agents.engines.pool.prefixes import PrefixTree
from unspoken.agents.engines.pool.statistics import HeldState, PoolStatistics, Usage
from unspoken.agents.engines.pool.tensors import State
from unspoken.channels.errors import RunError
from unspoken.channels.kv.compressed import CompressedState
from unspoken.channels.kv.state import KVState
from unspoken.channels.storage.forks import ForkLock


class Pool:
    """States by content, within a budget.

    All of it may be called from any thread.

    Args:
        budget: Most bytes of states on each device.
        retain: Whether states stay after their last ticket, as far as the budget allows.
        folder: Where states go that the budget has no room for; None for the system's folder for
            temporary files.
    """

    def __init__(
        self, budget: Budget | None = None, *, retain: bool = False, folder: Path | None = None
    ) -> None:
        self.budget = budget or Budget()
        self.retain = retain
        self.blocks = Blocks()
        self.lock = ForkLock(RLock)
        self.disk = Disk(folder, self.blocks, self.lock)
        self.queue = AdmissionQueue(self)
        self.usage = Usage()
        self.closed = False
        self._entries: dict[Hashable, Entry] = {}
        self._tickets: dict[StateRef, Entry] = {}
        self._cached: dict[
            Entry, None
        ] = {}  # those that nobody needs, the one used last at the end
        self._trees: dict[Hashable, PrefixTree[Entry]] = {}
        self._watching: list[Usage] = [self.usage]
        self._numbers = count()

    @property
    def bytes_held(self) -> int:
        """Bytes of memory that the states keep alive."""
        return self.blocks.held.total()

    def __len__(self) -> int:
        return len(self._entries)

    def watch(self) -> Usage:
        """What is used from now on, until it is forgotten."""
        with self.lock:
            usage = Usage(peak_bytes=self.bytes_held)
            self._watching.append(usage)
            return usage

    def forget(self, usage: Usage) -> None:
        """Leave a `Usage` as it is from now on."""
        with self.lock:
            self._watching = [one for one in self._watching if one is not usage]

    def put(
        self,
        state: State,
        ids: tuple[int, ...],
        holder: str = "",
        source: tuple[StateRef, Form] | None = None,
    ) -> StateRef:
        """Keep a state; see `unspoken.agents.engines.base.States`."""
        with self.lock:
            self.require_open()
            key = self._content_key(state, ids) if source is None else self._form_key(*source)
            entry = self._entries.get(key)
            if entry is None:
                entry = self.blocks.enter(key, next(self._numbers), ids, state)
                if source is None:  # now that all its memory is known
                    entry.key = self._content_key(state, ids)
                self._entries[entry.key] = entry
                self._index(entry, state)
            ref = self._ticket(entry, holder)
            self.note_peak()
            for device in self.blocks.held:
                self.reclaim(device, 0)
            return ref

    def require_open(self) -> None:
        """Refuse a pool that was closed."""
        if self.closed:
            raise RunError(
                "the session is closed",
                expected="an open session",
                fix="run within `with Session() as session:`, all of it",
            )

    def derived(self, source: StateRef, form: Form, holder: str = "") -> StateRef | None:
        """A ticket for what was made of a state in this form before, where it is there still."""
        with self.lock:
            entry = self._entries.get(self._form_key(source, form))
            return None if entry is None else self._ticket(entry, holder)

    def _form_key(self, source: StateRef, form: Form) -> Hashable:
        entry = self._tickets[source]
        exact = isinstance(entry.about, KVState) and entry.about.exact
        return ("form", form, entry.key if exact else entry.serial)

    def _ticket(self, entry: Entry, holder: str) -> StateRef:
        ref = StateRef(next(self._numbers))
        entry.holders[ref] = holder, UNKNOWN
        self._tickets[ref] = entry
        self.blocks.ticketed(entry, 1)
        self.use(entry)
        return ref

    def use(self, entry: Entry) -> None:
        """Note that a state is used now."""
        entry.used = next(self._numbers)
        self._cached.pop(entry, None)

    def entry_of(self, ref: StateRef) -> Entry:
        """What a ticket is for; a KeyError where it was given back."""
        return self._tickets[ref]

    def expect(self, ref: StateRef, due: float) -> None:
        """Say when a ticket's state is needed next: the lower, the sooner."""
        with self.lock:
            entry = self._tickets.get(ref)
            if entry is not None:
                entry.holders[ref] = entry.holders[ref][0], due

    def get(self, ref: StateRef) -> State:
        """The state of a ticket, read from disk where it is there alone.

        Raises:
            KeyError: The ticket was given back.
            StateError: It cannot be read from disk.
        """
        with self.lock:
            entry = self._tickets[ref]
            state = entry.state
        return self.fetch(entry) if state is None else state

    def about(self, ref: StateRef) -> State:
        """The state of a ticket, or, while it is on disk, all but the values of its rows."""
        with self.lock:
            return self._tickets[ref].about

    def fetch(self, entry: Entry) -> State:
        """An entry's state, read from disk where it is there alone."""
        state = self.disk.fetch(entry)
        with self.lock:
            self.note_peak()
        return state

    def release(self, ref: StateRef) -> None:
        """Give a ticket back."""
        with self.lock:
            entry = self._tickets.pop(ref, None)
            if entry is None:
                if self.closed:
                    return
                raise KeyError(ref)
            del entry.holders[ref]
            self.blocks.ticketed(entry, -1)
            self.settle(entry)

    def settle(self, entry: Entry) -> None:
        """Keep an entry that nobody needs any more in case, or free it."""
        if entry.needed or self._entries.get(entry.key) is not entry:
            return
        if self.retain and entry.tree is not None and entry.state is not None:
            self._cached[entry] = None
            self.reclaim(entry.blocks[0].device, 0)
        else:
            self._free(entry)
        self.queue.wake()

    def _free(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self._cached.pop(entry, None)
        if entry.tree is not None:
            entry.tree.remove(entry, entry.ids)
        self.disk.free_later(self.blocks.leave(entry))

    def reclaim(self, device: torch.device, room: int, but: Set[Entry] = frozenset()) -> None:
        """Free states that nobody needs, the longest unused first, until there is so much room.

        Args:
            device: Where.
            room: Bytes.
            but: States that stay.
        """
        limit = self.budget.of(device)
        if limit is None or self.blocks.held[device] + room <= limit:
            return
        for entry in list(self._cached):
            if self.blocks.held[device] + room <= limit:
                return
            frees = any(block.device == device and not block.needed for block in entry.blocks)
            if frees and entry not in but:
                self._free(entry)

    def victims(self, device: torch.device, room: int, but: Set[Entry]) -> list[Block]:
        """Blocks to put on disk for so much room: what is needed last, then what is unused longest.

        A block goes with the one of its states that is needed first.
        """
        stay = frozenset(blocks_of(but))
        waiting = [entry for entry in self._entries.values() if entry.holders and not entry.pins]
        waiting.sort(key=lambda entry: (-entry.due, entry.used))
        chosen: dict[Block, None] = {}
        for entry in waiting:
            for block in blocks_of([entry]):
                away = block.storage is None or block.device != device or block in stay
                if away or block.pinned or block.due < entry.due or block in chosen:
                    continue
                chosen[block] = None
                room -= block.nbytes
            if room <= 0:
                break
        return list(chosen)

    def _content_key(self, state: State, ids: tuple[int, ...]) -> Hashable:
        """Equal for states that may serve for each other."""
        devices: tuple[torch.device, ...] = ()
        if isinstance(state, CompressedState):
            rows: Hashable = (state.codec, *(first for *_, first in state.shapes))
        else:
            rows, devices = tuple(layer.first for layer in state.layers), state.devices
        shape = (state.identity, state.dtype, devices, state.start, state.stop, rows)
        if isinstance(state, KVState) and state.exact:
            hidden = tuple(sorted((at, len(tensor)) for at, tensor in state.hidden.items()))
            marks = tuple(snapshot.at for snapshot in state.snapshots)
            return ("exact", shape, hidden, marks, ids[: state.stop])
        return ("rows", shape, self.blocks.lying(state))

    def _index(self, entry: Entry, state: State) -> None:
        """Let turns find a state, if its rows are what each of them computes."""
        if not isinstance(state, KVState) or not state.exact or state.start != 0:
            return
        if not state.stop or len(entry.ids) < state.stop:
            return
        entry.ids = entry.ids[: state.stop]
        root = (state.identity, state.dtype, state.devices)
        entry.tree = self._trees.setdefault(root, PrefixTree())
        entry.tree.add(entry, entry.ids)

    def longest(self, query: PrefixQuery) -> tuple[Entry, int] | None:
        """The state that begins with the most of a context, and with how many of its tokens."""
        tree = self._trees.get((query.identity, query.dtype, query.devices))
        if tree is None:
            return None
        return tree.longest(query.ids, query.more_than, lambda entry, n: _serving(entry, n, query))

    def note_peak(self) -> None:
        """Count what is held and leased now."""
        held, leased = self.bytes_held, self.queue.leased.total()
        for usage in self._watching:
            usage.peak_bytes = max(usage.peak_bytes, held)
            usage.peak_reserved_bytes = max(usage.peak_reserved_bytes, held + leased)

    def note_shared(self) -> None:
        """Count what tickets share now, as a turn begins: those that it gave back are gone."""
        for usage in self._watching:
            usage.peak_shared_bytes = max(usage.peak_shared_bytes, self.blocks.shared)

    def statistics(self) -> PoolStatistics:
        """What is held now, and what was done so far."""
        with self.lock:
            cached = [b for b in blocks_of(self._cached) if b.storage is not None and not b.needed]
            return PoolStatistics(
                bytes_held=self.bytes_held,
                bytes_leased=self.queue.leased.total(),
                bytes_cached=sum(
                    b.nbytes for b in cached if b.storage is not None and not b.needed
                ),
                shared_bytes=self.blocks.shared,
                bytes_on_disk=self.disk.used,
                budget_bytes={str(device): self.budget.of(device) for device in self.blocks.held},
                tickets=len(self._tickets),
                states=tuple(_held(entry) for entry in self._entries.values()),
                **asdict(self.usage),
            )

    def close(self) -> None:
        """Free every state, whoever was to read it, and remove what is on disk."""
        with self.lock:
            self.closed = True
            for entry in list(self._entries.values()):
                entry.holders.clear()
                self._free(entry)
            self._tickets.clear()
            self.queue.wake()
        self.disk.close()


def _held(entry: Entry) -> HeldState:
    return HeldState(
        holders=tuple(holder for holder, _ in entry.holders.values()),
        tokens=entry.about.stop - entry.about.start,
        nbytes=entry.about.nbytes,
        on_disk=bool(entry.missing()),
    )


def _serving(entry: Entry, tokens: int, query: PrefixQuery) -> int:
    """After how many of so many of a state's tokens a turn may go on."""
    state = entry.about
    assert isinstance(state, KVState)  # others are not in the index
    captured = set(query.capture) <= set(state.hidden) and state.hidden_first == 0
    if query.capture and not captured:
        return 0
    return state.usable(query.geometry, tokens)
