"""A session: runs that share a memory, so that each finds what the ones before have computed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from unspoken.agents.engines.event_loop import running_loop
from unspoken.agents.engines.pool.budget import Budget
from unspoken.agents.engines.pool.pool import Pool
from unspoken.agents.engines.pool.statistics import PoolStatistics
from unspoken.channels.errors import InputError


class Session:
    """A memory for states that outlives a run.

    ::

        with Session(memory="2GB") as session:
            flow.run(document=document, question="Who?", session=session)
            flow.run(document=document, question="When?", session=session)

    The second run begins with the tokens of the first, so their state is there already. That holds
    between agents, between turns and between workflows, for one model in one dtype on one device.
    Runs of a session may go on at the same time, on several threads and event loops.

    Args:
        memory: Most bytes of states on each device, as a number or a size such as ``2GB``; None for
            half of what is free when a device is first used. A workflow's own `memory` does not
            count in a session.

    Raises:
        InputError: It is no size.
    """

    def __init__(self, *, memory: int | str | None = None) -> None:
        self._pool = Pool(Budget(memory), retain=True)
        self._runs: Counter[object] = Counter()

    @property
    def pool(self) -> Pool:
        """The pool of its states.

        Raises:
            InputError: The session is closed.
        """
        if self._pool.closed:
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

    def statistics(self) -> PoolStatistics:
        """What it holds now, and what it has done so far."""
        return self._pool.statistics()

    def close(self) -> None:
        """Free every state, in memory and on disk; a second time does nothing."""
        self._pool.close()

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
        if self._pool.closed:
            return "<Session, closed>"
        return f"<Session of {len(self._pool)} states, {self._pool.bytes_held} bytes>"
