"""Memory that states lie in, counted by storage: what several states share counts once."""

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

import torch

from unspoken.agents.engines.base import StateRef
from unspoken.agents.engines.pool.tensors import (
    State,
    View,
    outline_of,
    place_of,
    tensors_of,
    with_tensors,
)

if TYPE_CHECKING:
    from unspoken.agents.engines.pool.prefixes import PrefixTree
    from unspoken.agents.engines.pool.spill_file import Region

UNKNOWN = inf
"""When a state is needed next, where nothing says so: after all that is known."""


@dataclass(slots=True, eq=False)
class Block:
    """A storage with rows of one state or of several.

    Attributes:
        device: Where it belongs.
        nbytes: Its bytes.
        storage: Its memory; None while it is on disk alone.
        region: Its copy on disk, where there is one.
        entries: The states that lie in it.
        tickets: Number of tickets for them.
    """

    device: torch.device
    nbytes: int
    storage: torch.UntypedStorage | None
    region: "Region | None" = None
    entries: "dict[Entry, None]" = field(default_factory=dict)
    tickets: int = 0

    @property
    def pinned(self) -> bool:
        """Whether a turn is under way on it."""
        return any(entry.pins for entry in self.entries)

    @property
    def needed(self) -> bool:
        """Whether somebody will read it, or reads it now."""
        return any(entry.needed for entry in self.entries)

    @property
    def due(self) -> float:
        """When the first of its readers needs it."""
        return min((entry.due for entry in self.entries), default=UNKNOWN)


@dataclass(slots=True, eq=False)
class Entry:
    """A state that is kept.

    Attributes:
        key: Equal for states that may serve for each other.
        serial: Its number, in the order of coming.
        ids: Token ids of its context.
        views: How its tensors lie in their blocks, in order.
        blocks: The block of each of them.
        state: The state; None while some of it is on disk.
        outline: The state without its memory, once it was given up.
        used: Number of its last use.
        holders: Who holds tickets, and when each needs it.
        pins: Number of turns under way on it.
        tree: The index of prefixes that it is in; None where it may not be found.
    """

    key: Hashable
    serial: int
    ids: tuple[int, ...]
    views: tuple[View, ...]
    blocks: tuple[Block, ...]
    state: State | None
    used: int
    outline: State | None = None
    holders: dict[StateRef, tuple[str, float]] = field(default_factory=dict)
    pins: int = 0
    tree: "PrefixTree[Entry] | None" = None

    @property
    def due(self) -> float:
        """When its first reader needs it."""
        return min((due for _, due in self.holders.values()), default=UNKNOWN)

    @property
    def needed(self) -> bool:
        """Whether somebody will read it, or reads it now."""
        return bool(self.holders or self.pins)

    @property
    def about(self) -> State:
        """The state, or its outline: all but the values of its rows."""
        known = self.outline if self.state is None else self.state
        assert known is not None  # an outline is made before the state goes
        return known

    def missing(self) -> tuple[Block, ...]:
        """Its blocks that are on disk alone."""
        return tuple(block for block in blocks_of([self]) if block.storage is None)


class Blocks:
    """The blocks of a pool; whoever calls has the pool's lock.

    Attributes:
        held: Bytes in memory, by device.
        shared: Bytes in memory that several tickets are for.
    """

    def __init__(self) -> None:
        self.held: Counter[torch.device] = Counter()
        self.shared = 0
        self._at: dict[tuple[torch.device, int], Block] = {}

    def enter(self, key: Hashable, number: int, ids: tuple[int, ...], state: State) -> Entry:
        """An entry for a state; storages that are new are counted in."""
        tensors = tensors_of(state)
        blocks = tuple(self._block(place_of(tensor), tensor) for tensor in tensors)
        views = tuple(map(View.of, tensors))
        entry = Entry(key, number, ids, views, blocks, state, number)
        for block in blocks:
            block.entries[entry] = None
        return entry

    def _block(self, place: tuple[torch.device, int], tensor: torch.Tensor) -> Block:
        block = self._at.get(place)
        if block is None:
            storage = tensor.untyped_storage()
            block = self._at[place] = Block(tensor.device, storage.nbytes(), storage)
            self.held[block.device] += block.nbytes
        return block

    def lying(self, state: State) -> tuple[tuple[Block | None, int], ...]:
        """Where the tensors of a state lie: in which block, if any, and from which element on."""
        tensors = tensors_of(state)
        return tuple((self._at.get(place_of(t)), int(t.storage_offset())) for t in tensors)

    def leave(self, entry: Entry) -> list["Region"]:
        """Count an entry out; the places on disk of blocks that no entry is left in."""
        freed = []
        for block in blocks_of([entry]):
            del block.entries[entry]
            if block.entries:
                continue
            self.drop(block)
            if block.region is not None:
                freed.append(block.region)
                block.region = None
        self._give_up(entry)
        return freed

    def _give_up(self, entry: Entry) -> None:
        if entry.state is not None:
            entry.outline = entry.outline or outline_of(entry.state)
            entry.state = None

    def ticketed(self, entry: Entry, change: int) -> None:
        """Count a ticket in or out."""
        for block in blocks_of([entry]):
            before = block.tickets > 1
            block.tickets += change
            if block.storage is not None and before != (block.tickets > 1):
                self.shared += change * block.nbytes

    def drop(self, block: Block) -> None:
        """Give a block's memory up."""
        if block.storage is None:
            return
        del self._at[block.device, block.storage.data_ptr()]
        self.held[block.device] -= block.nbytes
        self.shared -= block.nbytes if block.tickets > 1 else 0
        block.storage = None
        for entry in block.entries:
            self._give_up(entry)

    def restore(self, block: Block, storage: torch.UntypedStorage) -> None:
        """Give a block its memory again."""
        block.storage = storage
        self._at[block.device, storage.data_ptr()] = block
        self.held[block.device] += block.nbytes
        self.shared += block.nbytes if block.tickets > 1 else 0

    def rebuild(self, entry: Entry) -> State:
        """The state of an entry whose blocks are all in memory again."""
        pairs = zip(entry.views, entry.blocks, strict=True)
        tensors = [view.on(block.storage) for view, block in pairs if block.storage is not None]
        entry.state = with_tensors(entry.about, tensors)
        return entry.state


def blocks_of(entries: Iterable[Entry]) -> tuple[Block, ...]:
    """The blocks of some entries, each once."""
    return tuple(dict.fromkeys(block for entry in entries for block in entry.blocks))
