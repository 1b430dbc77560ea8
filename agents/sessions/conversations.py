"""The conversations of a session: their states in a pool, the rest in memory or on disk."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from unspoken.agents.engines.base import Engine, StateRef
from unspoken.agents.engines.pool.pool import Pool
from unspoken.agents.sessions.records import Conversation, Key, StoredSession
from unspoken.agents.sessions.store import SessionStore, locked, new_session
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.storage.forks import ForkLock


@dataclass(frozen=True, slots=True)
class _Held:
    """A state in memory: what it is of, where it serves, and the session's ticket for it."""

    ids: tuple[int, ...]
    made: tuple[ModelIdentity, torch.dtype, torch.device]
    ref: StateRef


class Conversations:
    """The conversations of one session: their states in a pool, the rest in memory or on disk.

    Args:
        name: The session's name.
        store: Where they are kept; None for memory alone.
        pool: Where their states are.
        states: Whether states are written to disk too, where there is a store.
        anew: Whether each begins anew with its next run.
    """

    def __init__(
        self, name: str, store: SessionStore | None, pool: Pool, *, states: bool, anew: bool
    ) -> None:
        self.name, self.store, self.pool = name, store, pool
        self.states, self._anew = states, anew
        self._begun_anew: set[Key] = set()
        self._kept: StoredSession | None = None
        self._held: dict[Key, _Held] = {}
        self._busy = ForkLock()

    def now(self) -> StoredSession:
        """The session as the last run has left it.

        Raises:
            StoreError: It cannot be read.
        """
        kept = self._kept if self.store is None else self.store.find(self.name)
        return kept or new_session(self.name)

    def anew(self, key: Key) -> bool:
        """Whether a conversation is to begin anew."""
        return self._anew and key not in self._begun_anew

    def held(self, conversation: Conversation, engine: Engine) -> StateRef | None:
        """The ticket of a conversation's state, where it is in memory; another one goes."""
        held = self._held.get(conversation.key)
        if held is not None and (held.ids, held.made) == (conversation.ids, _made_by(engine)):
            return held.ref
        self.let_go(conversation.key)
        return None

    def hold(self, key: Key, ids: tuple[int, ...], engine: Engine, ref: StateRef) -> None:
        """Keep a state in memory in place of the one before."""
        self.let_go(key)
        self._held[key] = _Held(ids, _made_by(engine), ref)

    def let_go(self, key: Key) -> None:
        """Let go of a conversation's state."""
        held = self._held.pop(key, None)
        if held is not None:
            self.pool.release(held.ref)

    def put(self, session: StoredSession, made: Collection[Key]) -> None:
        """Put a session in place of what there was.

        Args:
            session: The session.
            made: Whose conversations the run has left.

        Raises:
            StoreError: It cannot be written.
        """
        if self.store is not None:
            self.store.save(session)
        else:
            self._kept = session
        self._begun_anew.update(made)

    def forget(self) -> None:
        """Remove the conversations, in memory and on disk.

        Raises:
            StoreError: A run goes on with them.
        """
        self.take()
        try:
            if self.store is not None:
                self.store.delete(self.name)
            self.close()
        finally:
            self.leave()

    def close(self) -> None:
        """Let go of all that is in memory."""
        for key in list(self._held):
            self.let_go(key)
        self._kept = None

    def take(self) -> None:
        """Begin a run that goes on with them.

        Raises:
            StoreError: Another one does.
        """
        if not self._busy.acquire(blocking=False):
            raise locked(self.name)

    def leave(self) -> None:
        """End that run."""
        self._busy.release()


def _made_by(engine: Engine) -> tuple[ModelIdentity, torch.dtype, torch.device]:
    facts = engine.facts
    return facts.identity, facts.dtype, facts.device
