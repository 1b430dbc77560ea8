"""One process at a time goes on with a run."""

import os
from contextlib import suppress
from pathlib import Path

from blake3 import blake3
from filelock import FileLock, Timeout

from unspoken.channels.errors import StoreError


class RunLock:
    """The lock of a run; the system takes it back when its process dies.

    Args:
        folder: Where locks are.
        run: The run's id.
    """

    def __init__(self, folder: Path, run: str) -> None:
        self._run = run
        name = blake3(run.encode()).hexdigest(length=10)
        self._lock = FileLock(folder / f"{name}.lock", timeout=0, thread_local=False)
        self._holder = folder / f"{name}.pid"

    def acquire(self) -> None:
        """Hold it.

        Raises:
            StoreError: Somebody else does.
        """
        folder = self._holder.parent
        for own in (folder.parent, folder):  # a mode is for the last folder that is made alone
            own.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._lock.acquire()
        except Timeout:
            raise StoreError(
                f"run {self._run} goes on in another place already{self._where()}",
                kind="locked",
                expected="one process that goes on with a run",
                fix=f"wait for it, or end it: unspoken runs cancel {self._run}",
            ) from None
        self._holder.write_text(str(os.getpid()))

    @property
    def held_elsewhere(self) -> bool:
        """Whether somebody else holds it at this moment."""
        if not Path(self._lock.lock_file).exists():
            return False
        try:
            self._lock.acquire()
        except Timeout:
            return True
        self._lock.release()
        return False

    def release(self) -> None:
        """Give it back; once is enough."""
        if self._lock.is_locked:
            with suppress(OSError):
                self._holder.unlink(missing_ok=True)
            self._lock.release()

    def _where(self) -> str:
        with suppress(OSError, ValueError):
            return f" (process {int(self._holder.read_text())})"
        return ""
