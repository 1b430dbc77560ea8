"""A run as a stream of events."""

from collections.abc import AsyncGenerator, Awaitable, Callable

import anyio

from unspoken.agents.runtime.events import Event, RunFinished
from unspoken.agents.runtime.failures import first_error
from unspoken.agents.runtime.scheduler import Scheduler

__all__ = ["run_events"]


async def run_events(
    ready: Callable[[Callable[[Event], None]], Awaitable[Scheduler]],
) -> AsyncGenerator[Event, None]:
    """Run a workflow, event by event; the last is `RunFinished`.

    Args:
        ready: Makes the run's scheduler, which calls what it is given with each event.
    """
    scheduler = await ready(lambda event: send.send_nowait(event))
    send, receive = anyio.create_memory_object_stream[Event](float("inf"))

    async def go() -> None:
        with send:
            report = await scheduler.run()
            send.send_nowait(RunFinished(scheduler.outputs(), report))

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(go)
            with receive:
                async for event in receive:
                    yield event
    except BaseExceptionGroup as group:
        raise first_error(group) from group.exceptions[0].__cause__
