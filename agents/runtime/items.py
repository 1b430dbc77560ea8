"""Turns beside each other: those that are ready, and the items of an agent."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from unspoken.agents.runtime.failures import first_error
from unspoken.agents.runtime.report import EdgeReport, FailedItem, TurnReport

Turn = TypeVar("Turn")
Result = TypeVar("Result")
Record = TypeVar("Record", TurnReport, EdgeReport, FailedItem)

SLICE = 0.005
"""Seconds that turns which never wait have the event loop, before others of it go first."""

MOST_ITEMS = 64
"""Items of one agent that are under way at a time: more than an engine gains by, and few enough
that a list of thousands is not composed all at once.
"""


class Ready(Generic[Turn]):
    """Turns that are ready, and the tasks that take them, in order.

    A task takes one turn after the other. Where one waits, another task goes on with the rest. So
    there are as many tasks as turns that wait, and a chain of turns is one.

    Args:
        take: Takes a turn, and adds those that follow from it.

    Attributes:
        turns: Those that nobody has taken yet.
    """

    def __init__(self, take: Callable[[Turn], Awaitable[None]]) -> None:
        self.turns: deque[Turn] = deque()
        self._take, self._called = take, False

    async def work(self, tasks: TaskGroup) -> None:
        """Take turns until none is left.

        Args:
            tasks: Where the tasks belong that go on while this one waits.
        """
        self._called, until = False, perf_counter() + SLICE
        while self.turns:
            if perf_counter() > until:
                await anyio.lowlevel.checkpoint()
                until = perf_counter() + SLICE
                continue
            turn = self.turns.popleft()
            if self.turns and not self._called:
                self._called = True
                tasks.start_soon(self.work, tasks, name="turns that are ready")
            await self._take(turn)


async def gather(
    count: int, work: Callable[[int], Awaitable[Result]], room: Callable[[], Awaitable[None]]
) -> list[Result]:
    """Do a piece of work for each number below `count`, at most `MOST_ITEMS` at a time.

    They begin in order, whatever event loop it is, and end in any.

    Args:
        count: How many there are.
        work: Does one; its first error cancels the others.
        room: Waited for before each begins.

    Returns:
        What each gave, in order.

    Raises:
        Exception: What the first that failed has raised.
    """
    results: dict[int, Result] = {}
    places = anyio.Semaphore(MOST_ITEMS)

    async def one(number: int) -> None:
        try:
            results[number] = await work(number)
        finally:
            places.release()

    try:
        async with anyio.create_task_group() as tasks:
            for number in range(count):
                await places.acquire()
                await room()
                tasks.start_soon(one, number)
                # trio starts the tasks of one moment in any order, so each has a moment of its own.
                await anyio.lowlevel.checkpoint()
    except BaseExceptionGroup as group:
        error = first_error(group)
        raise error from error.__cause__
    return [results[number] for number in range(count)]


def by_item(records: Iterable[Record]) -> tuple[Record, ...]:
    """Records in the order of their items, those of one turn together where its first stands."""
    records = list(records)
    if len(records) < 2:
        return tuple(records)
    first: dict[tuple[str, int], int] = {}
    places = [
        (first.setdefault((_whose(record), record.turn), number), record.item or 0)
        for number, record in enumerate(records)
    ]
    order = sorted(range(len(records)), key=places.__getitem__)
    return tuple(records[number] for number in order)


def _whose(record: TurnReport | EdgeReport | FailedItem) -> str:
    match record:
        case EdgeReport():
            return record.receiver
        case FailedItem():
            return record.agent
        case TurnReport():  # all of one agent
            return ""
