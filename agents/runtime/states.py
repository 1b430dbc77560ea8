"""The states of one run: its tickets in a pool."""

from contextlib import AbstractAsyncContextManager

from unspoken.agents.engines.base import Form, Lease, LeaseRequest, StateRef
from unspoken.agents.engines.pool.pool import Pool
from unspoken.agents.engines.pool.statistics import HeldState, PoolStatistics, Usage
from unspoken.channels.kv.compressed import CompressedState
from unspoken.channels.kv.state import KVState

__all__ = ["HeldState", "PoolStatistics", "StateRef", "StateStore"]


class StateStore:
    """Where the engines of a run keep states; see `unspoken.agents.engines.base.States`.

    Args:
        pool: Where they are, with those of other runs; without it, in a pool of their own, from
            which a state goes with its last ticket.

    Attributes:
        pool: The pool.
        usage: What the pool used since this run began.
    """

    def __init__(self, pool: Pool | None = None) -> None:
        self.pool = Pool() if pool is None else pool
        self.usage: Usage = self.pool.watch()
        self._tickets: set[StateRef] = set()

    @property
    def retains(self) -> bool:
        """Whether a state is of use without a reader: a later turn may begin as it does."""
        return self.pool.retain

    @property
    def bytes_held(self) -> int:
        """Bytes of memory that the pool's states keep alive."""
        return self.pool.bytes_held

    @property
    def peak_bytes(self) -> int:
        """The most that was so at a time since this run began."""
        return self.usage.peak_bytes

    def __len__(self) -> int:
        return len(self.pool)

    def put(
        self,
        state: KVState | CompressedState,
        ids: tuple[int, ...],
        holder: str = "",
        source: tuple[StateRef, Form] | None = None,
    ) -> StateRef:
        """Keep a state of `ids`; the ticket of an equal one where there is one."""
        return self._mine(self.pool.put(state, ids, holder, source))

    def derived(self, source: StateRef, form: Form, holder: str = "") -> StateRef | None:
        """A ticket for what was made of a state in this form before, where it is there still."""
        ref = self.pool.derived(source, form, holder)
        return None if ref is None else self._mine(ref)

    def _mine(self, ref: StateRef) -> StateRef:
        self._tickets.add(ref)
        return ref

    def get(self, ref: StateRef) -> KVState | CompressedState:
        """The state of a ticket; a KeyError where it was given back."""
        return self.pool.get(ref)

    def about(self, ref: StateRef) -> KVState | CompressedState:
        """The same for its shape alone: its rows need not be in memory."""
        return self.pool.about(ref)

    def release(self, ref: StateRef) -> None:
        """Give a ticket back."""
        self._tickets.discard(ref)
        self.pool.release(ref)

    def give_away(self, ref: StateRef) -> None:
        """Leave a ticket to somebody who gives it back to the pool."""
        self._tickets.discard(ref)

    def expect(self, ref: StateRef, due: float) -> None:
        """Say when a ticket's state is needed next: the lower, the sooner."""
        self.pool.expect(ref, due)

    def lease(self, request: LeaseRequest) -> AbstractAsyncContextManager[Lease]:
        """Wait for the memory of a turn, in the order of asking."""
        return self.pool.queue.lease(request, self.usage)

    def clear(self) -> None:
        """Give every ticket of this run back, whoever was to read the state."""
        while self._tickets:
            self.pool.release(self._tickets.pop())
        self.pool.forget(self.usage)

    def statistics(self) -> PoolStatistics:
        """What the pool holds now, and by whom."""
        return self.pool.statistics()
