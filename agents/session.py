"""A session: runs that share a memory, so that each finds what the ones before have computed."""

from types import TracebackType

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
