"""States that are not computed yet: of turns whose words are known already.

A run that goes on has the ids of its finished turns, and mostly nobody reads their states any more.
So each has a ticket, and is computed when a turn that is computed asks for it, from the states that
the first one read.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from itertools import count

import anyio

from unspoken.agents.engines.base import Engine, History, Inbound, StateRef, TurnRequest

Make = Callable[[], Awaitable[StateRef]]

_FIRST = -2
"""Numbers of these tickets go down from here; those of a pool go up from 0."""


class Owed:
    """A state that somebody may ask for.

    Args:
        engine: Whose state it is.
        make: Computes it.
        needs: The states that this one is computed from.
    """

    def __init__(self, engine: Engine, make: Make, needs: tuple["Owed", ...]) -> None:
        self._engine, self._make = engine, make
        self._needs, self._lock = needs, anyio.Lock()
        self._ref: StateRef | None = None
        self._users = 1  # its ticket, and each owed state that is made of it
        for one in needs:
            one._users += 1

    async def ref(self) -> StateRef:
        """The engine's ticket, computed where it has not been."""
        async with self._lock:
            if self._ref is None:
                self._ref = await self._make()
                self._let_go()
            return self._ref

    def release(self) -> None:
        """One user less; with the last one the state goes."""
        self._users -= 1
        if self._users:
            return
        self._let_go()
        if self._ref is not None:
            self._engine.release(self._ref)

    def _let_go(self) -> None:
        needs, self._needs = self._needs, ()
        for one in needs:
            one.release()


class OwedStates:
    """The owed states of one run, by ticket."""

    def __init__(self) -> None:
        self._numbers = count(_FIRST, -1)
        self._owed: dict[StateRef, Owed] = {}

    def add(self, owed: Owed) -> StateRef:
        """A ticket for an owed state."""
        ref = StateRef(next(self._numbers))
        self._owed[ref] = owed
        return ref

    def get(self, ref: StateRef | None) -> Owed | None:
        """The owed state of a ticket; None for a ticket of a pool's."""
        return None if ref is None else self._owed.get(ref)

    def release(self, ref: StateRef) -> bool:
        """Give a ticket back; False for one of a pool's."""
        owed = self._owed.pop(ref, None)
        if owed is None:
            return ref.number <= _FIRST
        owed.release()
        return True

    def of(self, request: TurnRequest) -> dict[StateRef, Owed]:
        """The owed states that a turn reads, by ticket."""
        return {ref: self._owed[ref] for ref in tickets(request) if ref in self._owed}

    def all_owed(self, request: TurnRequest) -> bool:
        """Whether every state that a turn reads is owed."""
        return all(ref.number <= _FIRST for ref in tickets(request))


async def resolved(request: TurnRequest, owed: Mapping[StateRef, Owed]) -> TurnRequest:
    """A turn with the engine's own tickets in place of owed ones."""
    refs = {ref: await one.ref() for ref, one in owed.items()}
    if not refs:
        return request
    inbound = tuple(_own(one, refs) for one in request.inbound)
    past = request.history
    if past is not None and past.state in refs:
        past = History(past.ids, refs[past.state])
    return replace(request, inbound=inbound, history=past)


def tickets(request: TurnRequest) -> list[StateRef]:
    """The tickets of the states that a turn reads."""
    refs = [one.state for one in request.inbound if one.state is not None]
    return refs if request.history is None else [*refs, request.history.state]


def _own(inbound: Inbound, refs: Mapping[StateRef, StateRef]) -> Inbound:
    if inbound.state is None or inbound.state not in refs:
        return inbound
    return replace(inbound, state=refs[inbound.state])
