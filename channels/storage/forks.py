"""What a forked child has afresh: threads do not come with a fork, and held locks never open.

`os.fork` copies the memory of a process and the one thread that called it. A lock that another
thread held stays locked in the child, and a pool of threads waits for work that nobody does. So
locks and threads of this project are made anew in the child, and other pools are not used there.
"""

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol
from weakref import WeakSet

from blake3 import blake3


class Renewable(Protocol):
    """Something that a forked child has afresh."""

    def renew(self) -> None:
        """Begin anew, whatever the state."""


_RENEWABLE: "WeakSet[Renewable]" = WeakSet()
_CALLS: list[Callable[[], object]] = []
_forked = False


class ForkLock:
    """A lock that is open in a forked child, whoever held it in the parent.

    Args:
        kind: Makes the lock: ``threading.Lock`` or ``threading.RLock``.
    """

    def __init__(self, kind: Callable[[], Any] = threading.Lock) -> None:
        self._kind = kind
        self._lock = kind()
        renewed_when_forked(self)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock, as those of `threading` are taken; whether it was had."""
        return bool(self._lock.acquire(blocking, timeout))

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def renew(self) -> None:
        """Begin with an open lock."""
        self._lock = self._kind()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()


def hash_threads() -> int:
    """Threads for a digest: all cores, but in a forked child one (the pool stayed behind)."""
    return 1 if _forked else blake3.AUTO


def renewed_when_forked(owner: Renewable) -> None:
    """Have `owner` renewed in every forked child, for as long as it lives."""
    _RENEWABLE.add(owner)


def when_forked(call: Callable[[], object]) -> None:
    """Have `call` called in every forked child, before it goes on."""
    _CALLS.append(call)


def _in_child() -> None:
    global _forked
    _forked = True
    for owner in list(_RENEWABLE):
        owner.renew()
    for call in _CALLS:
        call()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_in_child)
