"""What went wrong in a run, told by its agent and its edge; another try, where that may help."""

from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import TypeVar

import anyio
import stamina
import torch
from stamina.instrumentation import RetryDetails, RetryHook, get_on_retry_hooks, set_on_retry_hooks

from unspoken.agents.spec.turns import Passing, RetrySpec
from unspoken.channels.errors import (
    AgentError,
    InputError,
    RunError,
    RunTimeout,
    StoreError,
    UnspokenError,
)

Event = TypeVar("Event")
Result = TypeVar("Result")

MOST_WAIT = 60.0
"""Seconds between two tries at most, before chance adds to them."""

_KINDS: dict[Passing, tuple[type[Exception], ...]] = {
    "timeout": (RunTimeout, TimeoutError),
    "connection": (ConnectionError,),
    "memory": (MemoryError, torch.OutOfMemoryError),
    "any": (Exception,),
}


@dataclass
class RunLimit:
    """The limit of a run; `partial` gives what had finished, once the run has begun."""

    partial: Callable[[], object] = lambda: None


class InnerError(RunError):
    """A workflow that is an agent failed; the error of its own agent is the cause."""

    @property
    def origin(self) -> BaseException:
        """What went wrong at first."""
        error: BaseException = self
        while isinstance(error, InnerError | AgentError) and error.__cause__ is not None:
            error = error.__cause__
        return error


@contextmanager
def within(seconds: float | None) -> Iterator[RunLimit]:
    """Cancel a run that takes longer, its loading and fitting included.

    Raises:
        RunTimeout: It took longer.
    """
    limit = RunLimit()
    with anyio.move_on_after(seconds) as scope:
        yield limit
    if scope.cancelled_caught:
        late = RunTimeout(
            f"the run took longer than its timeout of {seconds:g} s",
            expected="at most so many seconds, in which models are loaded and bridges fitted too",
            fix="raise the workflow's timeout, shorten the agents' work, or load the models before "
            "the run",
        )
        late.partial = limit.partial()
        raise late


async def unless_idle(
    agent: str,
    seconds: float,
    work: Callable[[Callable[[Event], None]], Awaitable[Result]],
    tell: Callable[[Event], None],
    *,
    begun: bool,
) -> Result:
    """Do an agent's work, which tells of events, and cancel it where they stay away.

    Args:
        agent: Whose work it is.
        seconds: The most from one event to the next.
        work: The work; it gets what to call with each event.
        tell: Called with every event.
        begun: Whether the first event must come in time too.

    Raises:
        RunTimeout: So many seconds went by without an event.
    """
    with anyio.CancelScope() as scope:

        def heard(event: Event) -> None:
            scope.deadline = anyio.current_time() + seconds
            tell(event)

        scope.deadline = anyio.current_time() + seconds if begun else inf
        return await work(heard)
    raise RunTimeout(
        f"agent {agent!r} was idle for longer than its idle_timeout of {seconds:g} s",
        agent=agent,
        expected="a token, or progress of its prefill, within so many seconds",
        fix="raise the agent's idle_timeout, or see why its engine does not answer",
    )


def blame(agent: str, error: Exception, at: str = "") -> RunError:
    """The error of an agent's turn, naming the agent, and the edge where one is to blame.

    Args:
        agent: The agent.
        error: What was raised.
        at: Where in the turn, such as an item.
    """
    if isinstance(error, StoreError) or (isinstance(error, RunError) and error.agent):
        return error
    edge = error.edge if isinstance(error, RunError) else ""
    place = ", ".join(filter(None, (f"agent {agent!r}", at, edge and f"on the edge {edge}")))
    known = error if isinstance(error, UnspokenError) else None
    blamed = AgentError(
        f"{place} failed: {known.found if known else f'{type(error).__name__}: {error}'}",
        agent=agent,
        edge=edge,
        expected=known.expected if known else "",
        fix=known.fix if known else "",
    )
    cause = error.__cause__ if isinstance(error, RunError) else error
    if known and isinstance(cause, InputError):
        blamed.exit_code = InputError.exit_code
    return blamed


def first_error(error: BaseException) -> BaseException:
    """The first error of a group, the one that made the others stop."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def may_pass(error: Exception, kinds: Collection[Passing]) -> bool:
    """Whether an error of these kinds may be gone at the next try.

    What unspoken itself refuses it refuses again, whatever the kinds; a timeout may pass.
    """
    if isinstance(error, InnerError) and isinstance(error.origin, Exception):
        error = error.origin
    if isinstance(error, UnspokenError) and not isinstance(error, RunTimeout):
        return False
    return isinstance(error, tuple(known for kind in kinds for known in _KINDS[kind]))


async def retried(
    retry: RetrySpec | None,
    work: Callable[[], Awaitable[Result]],
    failed: Callable[[int, Exception], None],
) -> Result:
    """Do a piece of work, and again where it fails and that may help. A cancel ends it.

    Args:
        retry: How often, and after which errors; None for once.
        work: The work.
        failed: Told of each try that another one follows: its number, from 1, and its error.

    Raises:
        Exception: What the last try raised.
    """
    if retry is None:
        return await work()
    _quiet_stamina()
    tries = 0

    async def counted() -> Result:
        nonlocal tries
        tries += 1
        _ours.set(False)
        return await work()

    def again(error: Exception) -> bool:
        # A cancel is asked about too; it is no Exception, and so of no kind.
        passes = may_pass(error, retry.on)
        if passes and tries < retry.attempts:
            failed(tries, error)
            _ours.set(True)
        return passes

    call = stamina.AsyncRetryingCaller(
        attempts=retry.attempts,
        timeout=None,
        wait_initial=retry.wait,
        wait_max=MOST_WAIT,
        wait_jitter=retry.wait,
    )
    return await call(again, counted)


_ours: ContextVar[bool] = ContextVar("_ours", default=False)
"""Whether what stamina waits for is the next try of a turn; hooks are told no caller's name."""


@cache
def _quiet_stamina() -> None:
    """Let stamina's hooks pass over the tries of runs, which have a log and events of their own.

    Its default hook prints a line per try where a program sets no logging up. Hooks are for the
    whole process, so others that use stamina keep theirs.
    """
    set_on_retry_hooks([_of_others(hook) for hook in get_on_retry_hooks()])


def _of_others(hook: RetryHook) -> RetryHook:
    def called(details: RetryDetails) -> AbstractContextManager[None] | None:
        return None if _ours.get() else hook(details)

    return called
