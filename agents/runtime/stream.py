"""A run as a stream of events.

The run is a task of its own on the event loop, and the stream only hands over its events. So no
cancel scope is open in whoever follows it, and leaving the stream early cancels the run alone.
"""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress

import anyio

from unspoken.agents.engines.event_loop import post_to_loop, start_task
from unspoken.agents.runtime.events import Event

MOST_WAITING = 256
"""Events that wait for whoever follows; more of a turn's events are made once there is room."""

ROOM_AGAIN = MOST_WAITING // 2
"""As few wait when there is room again: turns that were kept go on together, so an engine that
computes many in one forward has all of them to compute.
"""


class EventBuffer:
    """Events on their way to one follower; all of it happens on one event loop.

    It holds `MOST_WAITING`, and a few more for each turn that was under way when it became full.
    """

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._kept: list[Callable[[], None]] = []
        self._news = anyio.Event()
        self._over = False

    def put(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)
        self._news.set()

    def when_room(self, go_on: Callable[[], None]) -> None:
        """Make a call once the follower is not far behind; at once, where it is not."""
        if self._kept or len(self._events) >= MOST_WAITING:
            self._kept.append(go_on)
        else:
            go_on()

    def end(self) -> None:
        """No event follows."""
        self._over = True
        self._news.set()

    async def take(self) -> Event | None:
        """The next event; None after the last."""
        while not self._events:
            if self._over:
                return None
            self._news = anyio.Event()
            await self._news.wait()
        event = self._events.popleft()
        if len(self._events) <= ROOM_AGAIN:
            kept, self._kept = self._kept, []
            for go_on in kept:
                go_on()
        return event


class _Run:
    """A run in a task of its own."""

    def __init__(self, follow: Callable[[EventBuffer], Awaitable[None]]) -> None:
        self.events, self.over = EventBuffer(), anyio.Event()
        self.error: Exception | None = None
        self._follow, self._scope, self._post = follow, anyio.CancelScope(), post_to_loop()
        start_task(self._work)

    async def _work(self) -> None:
        try:
            with self._scope:
                await self._follow(self.events)
        except Exception as error:
            self.error = error
        finally:
            self.events.end()
            self.over.set()

    async def stop(self) -> None:
        """Cancel the run, and wait for its end."""
        self._scope.cancel()
        with anyio.CancelScope(shield=True):
            await self.over.wait()

    def forget(self) -> None:
        """Cancel the run from whatever thread, if there still is an event loop for it."""
        with suppress(RuntimeError):
            self._post(self._scope.cancel)


class RunStream(AsyncGenerator[Event, None]):
    """The events of a run, which begins when the first is asked for.

    Closing the stream, or a cancel while it waits for an event, ends the run and waits for its end.
    Dropping the stream ends the run as well, a moment later.

    Args:
        follow: Runs to the end, putting every event into the buffer.
    """

    def __init__(self, follow: Callable[[EventBuffer], Awaitable[None]]) -> None:
        self._follow = follow
        self._run: _Run | None = None
        self._closed = self._waiting = False

    async def asend(self, value: None) -> Event:
        """The next event.

        Raises:
            StopAsyncIteration: There is none.
            UnspokenError: The run failed.
        """
        if self._waiting:
            raise RuntimeError("the stream is being waited for already")
        if self._closed:
            raise StopAsyncIteration
        self._waiting = True
        try:
            self._run = self._run or _Run(self._follow)
            event = await self._run.events.take()
        except BaseException:
            await self.aclose()
            raise
        finally:
            self._waiting = False
        if event is not None:
            return event
        self._closed = True
        if self._run.error is not None:
            raise self._run.error
        raise StopAsyncIteration

    async def athrow(self, *error: object) -> Event:
        """End the run, and raise `error`, a class or an exception."""
        await self.aclose()
        raise next(part for part in reversed(error) if isinstance(part, BaseException | type))

    async def aclose(self) -> None:
        """End the run, if it has not ended, and wait for its end."""
        self._closed = True
        if self._run is not None:
            await self._run.stop()

    def __del__(self) -> None:
        if self._run is not None and not self._closed:
            self._run.forget()
