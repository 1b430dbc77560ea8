"""The event loop that runs, asyncio's or trio's: calls from other threads, tasks of their own."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
from anyio.from_thread import start_blocking_portal

Result = TypeVar("Result")

Post = Callable[[Callable[[], object]], None]
"""Has the event loop make a call soon, in order, without waiting for it; from any thread.

Raises:
    RuntimeError: The event loop is closed.
"""

_TASKS: "set[asyncio.Task[None]]" = set()
"""Tasks under way; asyncio itself would let them be collected."""


def post_to_loop() -> Post:
    """The way into the event loop that runs here, for other threads.

    Nothing waits for the call: a loop that stands still, or that was left for good, holds up no
    thread but its own.
    """
    token: Any = anyio.lowlevel.current_token().native_token
    is_asyncio = isinstance(token, asyncio.AbstractEventLoop)
    soon = token.call_soon_threadsafe if is_asyncio else token.run_sync_soon
    context = copy_context()
    return lambda call: soon(context.run, call)


def start_task(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `work` on this event loop in no task group: it ends by itself, or with the loop.

    Args:
        work: Raises nothing but a cancel, and what ends the program.
    """
    token: Any = anyio.lowlevel.current_token().native_token
    if isinstance(token, asyncio.AbstractEventLoop):
        task = token.create_task(work())
        _TASKS.add(task)
        task.add_done_callback(_TASKS.discard)
    else:
        import trio.lowlevel

        trio.lowlevel.spawn_system_task(work, context=copy_context())


def run_anywhere(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run `work` to its end; where an event loop runs here already, on another thread.

    That loop stands still meanwhile. What context variables hold here, they hold there.
    """
    if not _loop_runs():
        return anyio.run(work)
    with start_blocking_portal() as thread:
        result: Result = thread.call(work)
        return result


def _loop_runs() -> bool:
    try:
        anyio.lowlevel.current_token()
    except RuntimeError:
        return asyncio._get_running_loop() is not None  # a callback of a loop is in no task
    return True
