"""Another try of a turn that failed, where the error may be gone by then."""

from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

import stamina
import torch

from unspoken.agents.spec.turns import Passing, RetrySpec
from unspoken.channels.errors import RunTimeout, UnspokenError

Result = TypeVar("Result")

MOST_WAIT = 60.0
"""Seconds between two tries at most, before chance adds to them."""

_KINDS: dict[Passing, tuple[type[Exception], ...]] = {
    "timeout": (RunTimeout, TimeoutError),
    "connection": (ConnectionError,),
    "memory": (MemoryError, torch.OutOfMemoryError),
    "any": (Exception,),
}


def may_pass(error: Exception, kinds: Collection[Passing]) -> bool:
    """Whether an error of these kinds may be gone at the next try.

    What unspoken itself refuses it refuses again, whatever the kinds; a timeout may pass.
    """
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
    tries = 0

    async def counted() -> Result:
        nonlocal tries
        tries += 1
        return await work()

    def again(error: Exception) -> bool:
        # A cancel is asked about too; it is no Exception, and so of no kind.
        passes = may_pass(error, retry.on)
        if passes and tries < retry.attempts:
            failed(tries, error)
        return passes

    call = stamina.AsyncRetryingCaller(
        attempts=retry.attempts,
        timeout=None,
        wait_initial=retry.wait,
        wait_max=MOST_WAIT,
        wait_jitter=retry.wait,
    )
    return await call(again, counted)
