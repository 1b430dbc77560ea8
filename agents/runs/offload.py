"""Work with the disk, off the event loop."""

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

Result = TypeVar("Result")


async def elsewhere(work: Callable[..., Result], *args: object) -> Result:
    """Do a piece of work on another thread; a cancel waits for it."""
    with anyio.CancelScope(shield=True):
        result = await anyio.to_thread.run_sync(work, *args)
    return result  # noqa: RET504  # to mypy, a scope may end before its end
