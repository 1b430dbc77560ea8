"""A run as a stream of events.

The run is a task of its own on the event loop, and the stream only hands over its events. So no
cancel scope is open in whoever follows it, and leaving the stream early cancels the run alone.
"""

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial

import anyio

from unspoken.agents.engines.event_loop import Post, post_to_loop, start_task
from unspoken.agents.runtime.events import Event
from unspoken.channels.errors import InputError

MOST_WAITING = 256
"""Events that wait for whoever follows; more of a turn's events are made once there is room."""

ROOM_AGAIN = MOST_WAITING // 2
"""As few wait when there is room again: turns that were kept go on together, so an engine that
computes many in one forward has all of them to compute.
"""


class Follower:
    """The events that wait for one follower."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.news = anyio.Event()


class EventBuffer:
    """Events on their way to their followers; all of it happens on one event loop.

    It holds `MOST_WAITING` for each, and a few more for each turn that was under way when it became
    full. The slowest follower is the one that the run waits for.
    """

    def __init__(self) -> None:
        self._followers: list[Follower] = []
        self._kept: list[Callable[[], None]] = []
        self._over = False

    def follow(self) -> Follower:
        """One more follower, of the events from now on."""
        self._followers.append(Follower())
        return self._followers[-1]

    def leave(self, follower: Follower) -> None:
        """A follower takes no more."""
        if follower in self._followers:
            self._followers.remove(follower)
            follower.events.clear()
            self._go_on()

    @property
    def waiting(self) -> int:
        """Events that wait for the slowest follower."""
        return max((len(follower.events) for follower in self._followers), default=0)

    def put(self, event: Event) -> None:
        """Add an event."""
        for follower in self._followers:
            follower.events.append(event)
            follower.news.set()

    def when_room(self, go_on: Callable[[], None]) -> None:
        """Make a call once no follower is far behind; at once, where none is."""
        if self._kept or self.waiting >= MOST_WAITING:
            self._kept.append(go_on)
        else:
            go_on()

    def end(self) -> None:
        """No event follows."""
        self._over = True
        for follower in self._followers:
            follower.news.set()

    async def take(self, follower: Follower) -> Event | None:
        """The next event of a follower; None after the last."""
        while not follower.events:
            if self._over:
                return None
            follower.news = anyio.Event()
            await follower.news.wait()
        event = follower.events.popleft()
        self._go_on()
        return event

    def _go_on(self) -> None:
        if self._kept and self.waiting <= ROOM_AGAIN:
            kept, self._kept = self._kept, []
            for go_on in kept:
                go_on()


class _Run:
    """A run in a task of its own."""

    def __init__(
        self, follow: Callable[[EventBuffer], Awaitable[None]], events: EventBuffer
    ) -> None:
        self.events, self.over = events, anyio.Event()
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
        self._follow, self._events = follow, EventBuffer()
        self._own = self._events.follow()
        self._run: _Run | None = None
        self._closed = self._waiting = False

    def also(self) -> "AlsoStream":
        """One more follower of the same run, who gets every event too.

        It begins no run and ends none. The run waits for it as it does for this stream, until it is
        closed or dropped; so ask for it before the first event, and follow it in another task.

        Raises:
            InputError: The run has begun.
        """
        if self._run is not None or self._closed:
            raise InputError(
                "a stream whose run has begun gets no more followers",
                expected="also() before the first event",
                fix="call it right after stream()",
            )
        return AlsoStream(self._events)

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
            self._run = self._run or _Run(self._follow, self._events)
            event = await self._events.take(self._own)
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
        else:
            self._events.end()

    def __del__(self) -> None:
        if self._run is not None and not self._closed:
            self._run.forget()


class AlsoStream(AsyncIterator[Event]):
    """One more follower of a run; it is over when the run is, however that ended."""

    def __init__(self, events: EventBuffer) -> None:
        self._events, self._own = events, events.follow()
        self._post: Post | None = None

    async def __anext__(self) -> Event:
        """The next event."""
        self._post = self._post or post_to_loop()
        event = await self._events.take(self._own)
        if event is None:
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """Follow no longer; the run goes on."""
        self._events.leave(self._own)

    def __del__(self) -> None:
        # From whatever thread: what it may let go on belongs to its event loop.
        leave = partial(self._events.leave, self._own)
        if self._post is None:
            leave()
        else:
            with suppress(RuntimeError):
                self._post(leave)
