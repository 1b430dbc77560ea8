"""The event loop that runs, asyncio's or trio's: calls from other threads, tasks of their own."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
from anyio.from_thread import start_blocking_portal

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Post:
    """The way into an event loop for other threads.

    Nothing waits for a call: a loop that stands still, or that was left for good, holds up no
    thread but its own.

    Attributes:
        loop: The loop, to tell it from others.
        soon: Has it make a call soon, in order, from any thread.
        context: The context variables that calls see.
    """

    loop: object
    soon: Callable[..., object]
    context: Context

    def __call__(self, call: Callable[[], object]) -> None:
        """Have the loop make a call soon.

        Raises:
            RuntimeError: The event loop is closed.
        """
        self.soon(self.context.run, call)


def post_all(calls: Sequence[tuple[Post, Callable[[], object]]]) -> list[Post]:
    """Have every loop make its calls soon, in order, and wake each loop once.

    Returns:
        Those whose loop is closed.
    """
    by_loop: dict[int, list[tuple[Post, Callable[[], object]]]] = {}
    for post, call in calls:
        by_loop.setdefault(id(post.loop), []).append((post, call))
    closed = []
    for group in by_loop.values():
        try:
            group[0][0].soon(_make, [(post.context, call) for post, call in group])
        except RuntimeError:
            closed += [post for post, _ in group]
    return closed


def _make(calls: Sequence[tuple[Context, Callable[[], object]]]) -> None:
    for context, call in calls:
        context.run(call)


_TASKS: "set[asyncio.Task[None]]" = set()
"""Tasks under way; asyncio itself would let them be collected."""


def post_to_loop() -> Post:
    """The way into the event loop that runs here, for other threads."""
    token: Any = anyio.lowlevel.current_token().native_token
    is_asyncio = isinstance(token, asyncio.AbstractEventLoop)
    soon = token.call_soon_threadsafe if is_asyncio else token.run_sync_soon
    return Post(token, soon, copy_context())


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
    if running_loop() is None:
        results: list[Result] = []

        async def to_end() -> None:
            results.append(await work())

        anyio.run(to_end)  # asyncio writes out what a task returns, whatever its size
        return results[0]
    with start_blocking_portal() as thread:
        result: Result = thread.call(work)
        return result


def running_loop() -> object | None:
    """The event loop that runs on this thread; None for none."""
    try:
        return anyio.lowlevel.current_token().native_token
    except RuntimeError:
        return asyncio._get_running_loop()  # a callback of a loop is in no task
