"""Who may start a turn: each leases all the memory that it needs, or waits for it.

A turn that waits holds nothing, and one that runs waits for nothing, so they cannot block each
other. On each device they are let in in the order of asking, and none waits for another device's.
Room is made by freeing what nobody needs, then by putting on disk what is needed last, then by
waiting for the turns under way.
"""

from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import torch

from unspoken.agents.engines.base import LeaseRequest, StateRef
from unspoken.agents.engines.event_loop import post_to_loop
from unspoken.agents.engines.pool.blocks import Block, Entry, blocks_of
from unspoken.agents.engines.pool.statistics import Usage
from unspoken.agents.engines.teams import ending_team
from unspoken.channels.errors import RunError, StateError
from unspoken.channels.kv.state import KVState
from unspoken.channels.sizes import shown_bytes

if TYPE_CHECKING:
    from unspoken.agents.engines.pool.pool import Pool


class PoolLease:
    """The memory of one turn; see `unspoken.agents.engines.base.Lease`.

    Attributes:
        found: The ids and the state of another turn that begins as this one does.
        lost: Tickets whose states cannot be read from disk again.
    """

    def __init__(
        self,
        queue: "AdmissionQueue",
        device: torch.device,
        nbytes: int,
        entries: Sequence[Entry],
        hit: tuple[Entry, int] | None,
    ) -> None:
        self.device, self.nbytes, self.entries, self.hit = device, nbytes, tuple(entries), hit
        self.found: tuple[tuple[int, ...], KVState] | None = None
        self.lost: frozenset[StateRef] = frozenset()
        self.open = True
        self._queue = queue

    def close(self) -> None:
        """Give the memory back."""
        self._queue.end(self)

    @contextmanager
    def handing_over(self) -> Iterator[None]:
        """Give the memory back for a state that is put in the block; nobody is let in before."""
        with self._queue.lock:
            self.close()
            yield


class _Waiter:
    """Who waits for memory, on an event loop of its own."""

    def __init__(self) -> None:
        self.news = anyio.Event()
        self.disk_error: OSError | None = None
        self._post = post_to_loop()

    def wake(self) -> bool:
        """Have it look again; whether there still is an event loop that it waits on."""
        try:
            self._post(self.news.set)
        except RuntimeError:
            return False
        return True


class AdmissionQueue:
    """The turns that wait for memory of a pool, and the leases of those under way.

    Args:
        pool: The pool.
    """

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._waiting: defaultdict[torch.device, deque[_Waiter]] = defaultdict(deque)
        self._open: Counter[torch.device] = Counter()
        self.leased: Counter[torch.device] = Counter()
        self.lock = pool.lock

    @asynccontextmanager
    async def lease(self, request: LeaseRequest, usage: Usage) -> AsyncIterator[PoolLease]:
        """Wait for the memory of a turn; see `unspoken.agents.engines.base.States`.

        Args:
            request: What it needs.
            usage: Of the run that asks.
        """
        # As tensors name it: "cuda" and "cuda:0" are one memory, and have one order of asking.
        device = torch.empty(0, device=request.device).device
        lease = await self._admitted(replace(request, device=device), usage)
        try:
            await self._fetch(lease)
            yield lease
        finally:
            lease.close()

    def end(self, lease: PoolLease) -> None:
        """Give the memory of a lease back."""
        pool = self._pool
        with pool.lock:
            if not lease.open:
                return
            lease.open = False
            self.leased[lease.device] -= lease.nbytes
            self._open[lease.device] -= 1
            for entry in lease.entries:
                entry.pins -= 1
                pool.settle(entry)
            self.wake()

    def wake(self) -> None:
        """Have the first of each device look again; whoever calls has the pool's lock."""
        for waiting in self._waiting.values():
            while waiting and not waiting[0].wake():
                waiting.popleft()

    async def _admitted(self, request: LeaseRequest, usage: Usage) -> PoolLease:
        pool, waiter = self._pool, _Waiter()
        with pool.lock:
            waiting = self._waiting[request.device]
            waiting.append(waiter)
        try:
            while True:
                with pool.lock:
                    step = self._step(waiter, request, usage)
                if isinstance(step, PoolLease):
                    return step
                if step:
                    await self._spill(waiter, step, usage)
                else:
                    await waiter.news.wait()
        finally:
            with pool.lock:
                if waiter in waiting:
                    waiting.remove(waiter)
                self.wake()

    async def _spill(self, waiter: _Waiter, victims: list[Block], usage: Usage) -> None:
        """Put blocks on disk; a cancel does not wait for that."""

        def write() -> None:
            given_up = 0
            try:
                given_up = self._pool.disk.spill(victims)
            finally:
                with self._pool.lock:
                    self._pool.usage.spilled_bytes += given_up
                    usage.spilled_bytes += given_up
                    self.wake()

        try:
            await anyio.to_thread.run_sync(ending_team(write), abandon_on_cancel=True)
        except OSError as error:
            waiter.disk_error = error

    def _step(
        self, waiter: _Waiter, request: LeaseRequest, usage: Usage
    ) -> PoolLease | list[Block] | None:
        """A lease; or what is to be put on disk for it; or nothing, where it has to wait."""
        pool = self._pool
        pool.require_open()
        waiter.news = anyio.Event()
        hit = None if request.query is None else pool.longest(request.query)
        entries = [pool.entry_of(ref) for ref in request.refs]
        entries = list(dict.fromkeys([*entries, *([hit[0]] if hit else [])]))
        device, limit = request.device, pool.budget.of(request.device)
        fetched = sum(
            block.nbytes
            for block in blocks_of(entries)
            if block.storage is None and block.device == device
        )
        nbytes = request.nbytes(hit[1] if hit else 0) + fetched
        if nbytes and self._waiting[request.device][0] is not waiter:
            return None
        if nbytes and limit is not None:
            kept = frozenset(entries)
            pool.reclaim(device, nbytes + self.leased[device], kept)
            short = pool.blocks.held[device] + self.leased[device] + nbytes - limit
            if short > 0:
                victims = [] if waiter.disk_error else pool.victims(device, short, kept)
                if victims or self._open[device] or pool.disk.busy:
                    return victims
                most = pool.budget.at_most(device)
                if request.must_fit and most is not None and short > most - limit:
                    raise _does_not_fit(pool, request, nbytes, entries, most, waiter.disk_error)
        if request.query is not None:
            for one in (pool.usage, usage):
                one.count(0 if hit is None else hit[1])
        return self._granted(request, nbytes, entries, hit)

    def _granted(
        self,
        request: LeaseRequest,
        nbytes: int,
        entries: list[Entry],
        hit: tuple[Entry, int] | None,
    ) -> PoolLease:
        for entry in entries:
            entry.pins += 1
            self._pool.use(entry)
        self._pool.note_shared()
        self.leased[request.device] += nbytes
        self._pool.note_peak()
        self._open[request.device] += 1
        return PoolLease(self, request.device, nbytes, entries, hit)

    async def _fetch(self, lease: PoolLease) -> None:
        """Have all that a turn reads in memory. What came from disk counts as held from then on."""
        pool = self._pool
        lost = set()
        for entry in lease.entries:
            with pool.lock:
                missing = entry.missing()
                there = entry.state is not None
            if there:
                continue
            try:
                await anyio.to_thread.run_sync(
                    ending_team(pool.fetch), entry, abandon_on_cancel=True
                )
            except StateError:
                lost.add(entry)
            back = sum(block.nbytes for block in missing if block.device == lease.device)
            with pool.lock:
                lease.nbytes -= back
                self.leased[lease.device] -= back
        lease.lost = frozenset(ref for entry in lost for ref in entry.holders)
        if lease.hit is not None:
            entry, tokens = lease.hit
            if isinstance(entry.state, KVState):
                lease.found = entry.ids[:tokens], entry.state


def _does_not_fit(
    pool: "Pool",
    request: LeaseRequest,
    nbytes: int,
    entries: Sequence[Entry],
    limit: int,
    disk_error: OSError | None,
) -> RunError:
    """The error of a turn that has the device to itself, and still lacks room."""
    reads = sum(
        block.nbytes
        for block in blocks_of(entries)
        if block.storage is not None and block.device == request.device
    )
    who = f"the turn of {request.owner!r}" if request.owner else "a turn"
    found = f"{who} needs {shown_bytes(nbytes + reads)} of state"
    others = pool.blocks.held[request.device] - reads
    if disk_error is not None:
        found += (
            f", {shown_bytes(others)} are taken by states that others wait for, and those cannot "
            f"be put on disk: {disk_error.strerror or disk_error}"
        )
    return RunError(
        found,
        expected=f"at most {shown_bytes(limit)}, the memory for states",
        fix="make room on the disk, or give the run more memory"
        if disk_error is not None
        else "give the run more memory, lower max_new_tokens, or shorten what the agent reads",
    )
