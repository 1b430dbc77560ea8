"""The items of an agent: many turns beside each other, and what they give in order."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio
import anyio.lowlevel

from unspoken.agents.runtime.failures import first_error
from unspoken.agents.runtime.report import EdgeReport, FailedItem, TurnReport

Result = TypeVar("Result")
Record = TypeVar("Record", TurnReport, EdgeReport, FailedItem)

MOST_ITEMS = 64
"""Items of one agent that are under way at a time: more than an engine gains by, and few enough
that a list of thousands is not composed all at once.
"""


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
