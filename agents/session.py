"""A session: runs that share a memory and go on with conversations."""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from types import TracebackType

from unspoken.agents.engines.event_loop import running_loop
from unspoken.agents.engines.pool.budget import Budget
from unspoken.agents.engines.pool.pool import Pool
from unspoken.agents.engines.pool.statistics import PoolStatistics
from unspoken.agents.runs.store import RunStore
from unspoken.agents.sessions.conversations import Conversations
from unspoken.agents.sessions.records import Conversation
from unspoken.agents.sessions.store import SessionStore, checked_name
from unspoken.agents.sessions.talk import Talk, talk
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import InputError
from unspoken.channels.storage.forks import ForkLock

Where = RunStore | SessionStore | str | Path | None


class Session:
    """A memory for states that outlives a run, and the conversations of agents that go on with it.

    ::

        with Session(memory="2GB") as session:
            flow.run(document=document, question="Who?", session=session)
            flow.run(document=document, question="When?", session=session)

    The second run begins with the tokens of the first, so their state is there already. That holds
    between agents, between turns and between workflows, for one model in one dtype on one device.
    Runs of a session may go on at the same time, on several threads and event loops.

    Agents with ``memory: session`` go on from the context that they had in the last run. One such
    run goes on at a time. It leaves its contexts when it has ended well, all of them at once.

    Args:
        memory: Most bytes of states on each device, as a number or a size such as ``2GB``; None for
            half of what is free when a device is first used. A workflow's own `memory` does not
            count in a session.
        name: What it is called on disk and in errors; any text of up to 200 characters.
        store: Where conversations are kept: a folder, or that of a `RunStore`; None for memory
            alone. Another process goes on there with a session of the same name.
        states: Whether their states are kept in the store too, so that none is computed again.
        anew: Whether conversations that there are begin anew; they stay until the first run that
            has ended well.

    Raises:
        InputError: The memory is no size, or the name is none.
    """

    def __init__(
        self,
        *,
        memory: int | str | None = None,
        name: str = "",
        store: Where = None,
        states: bool = True,
        anew: bool = False,
    ) -> None:
        self._pool = Pool(Budget(memory), retain=True)
        self._runs: Counter[object] = Counter()
        self._named: dict[str, Session] = {}
        self._guard = ForkLock()
        self._within: Session | None = None
        if store is not None and not isinstance(store, SessionStore):
            store = SessionStore(store)
        self._open(name and checked_name(name), store, states=states, anew=anew)

    def _open(self, name: str, store: SessionStore | None, *, states: bool, anew: bool) -> None:
        self.name, self._closed = name, False
        self._talks = Conversations(name, store, self._pool, states=states, anew=anew)

    def named(self, name: str) -> "Session":
        """The session of this name within this one: it has the same memory and the same store.

        Each has conversations of its own, so this is how many users share a model. It is the same
        one until it is closed. Conversations that are in the store go on, also where this session
        begins its own `anew`.

        Raises:
            InputError: The name is none, or this session is closed.
        """
        name, pool, top = checked_name(name), self.pool, self._within or self
        with top._guard:
            known = top._named.get(name)
            if known is None:
                known = top._named[name] = Session.__new__(Session)
                known._pool, known._runs, known._within = pool, top._runs, top
                store, states = top._talks.store, top._talks.states
                known._open(name, store, states=states, anew=False)
            return known

    @property
    def pool(self) -> Pool:
        """The pool of its states.

        Raises:
            InputError: The session is closed.
        """
        if self._pool.closed or self._closed:
            raise InputError(
                "the session is closed",
                expected="an open session",
                fix="run within `with Session() as session:`, all of it",
            )
        return self._pool

    @contextmanager
    def running(self) -> Iterator[Pool]:
        """The pool, for a run on the event loop of this thread.

        Raises:
            InputError: The session is closed.
        """
        loop, pool = running_loop(), self.pool
        self._runs[loop] += 1
        try:
            yield pool
        finally:
            self._runs[loop] -= 1
            if not self._runs[loop]:
                del self._runs[loop]

    def require_free_loop(self) -> None:
        """Refuse to hold up the event loop of this thread where runs of the session are under way.

        They could give back no memory, and whoever waits for that would wait for ever.

        Raises:
            InputError: There are such runs.
        """
        if running_loop() in self._runs:
            raise InputError(
                "run() would hold up this event loop, on which another run of the session goes on",
                expected="one that leaves the loop free",
                fix="await arun(...) in place of run(...), or call run(...) on another thread",
            )

    def talk(self, spec: WorkflowSpec, run: str) -> AbstractAsyncContextManager[Talk | None]:
        """What a run reads and leaves of the conversations; see `sessions.talk`."""
        return talk(self._talks, spec, run)

    def conversations(self) -> tuple[Conversation, ...]:
        """The conversations, as the last run has left them.

        Raises:
            StoreError: They cannot be read.
        """
        return self._talks.now().conversations

    def forget(self) -> None:
        """Remove the conversations, in memory and on disk; states that others may use stay.

        Raises:
            StoreError: A run goes on with them, or they cannot be removed.
        """
        self._talks.forget()

    def statistics(self) -> PoolStatistics:
        """What it holds now, and what it has done so far."""
        return self._pool.statistics()

    def close(self) -> None:
        """Free every state, in memory and on disk; a second time does nothing.

        Conversations in a store stay there. A session within another one leaves that its memory.
        """
        self._closed = True
        self._talks.close()
        if self._within is None:
            self._pool.close()
            return
        with self._within._guard:
            if self._within._named.get(self.name) is self:
                del self._within._named[self.name]

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        if self._pool.closed or self._closed:
            return f"<Session{name}, closed>"
        return f"<Session{name} of {len(self._pool)} states, {self._pool.bytes_held} bytes>"
