"""One process at a time goes on with a run."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from blake3 import blake3
from filelock import FileLock, Timeout

from unspoken.agents.runs.faults import reporting_faults
from unspoken.channels.errors import StoreError

SHORT_S = 1.0
"""How long a lock is waited for: a look at it, and the last lines of a run, hold it as long."""


class RunLock:
    """The lock of a run; the system takes it back when its process dies.

    Args:
        folder: Where locks are.
        run: The run's id.
        wait_s: Seconds that it is waited for.
        file: What its files are called; empty for a digest of `run`.

    Attributes:
        run: The run's id.
    """

    def __init__(self, folder: Path, run: str, wait_s: float = SHORT_S, *, file: str = "") -> None:
        self.run, self._wait_s = run, wait_s
        name = file or blake3(run.encode()).hexdigest(length=10)
        self._lock = FileLock(folder / f"{name}.lock", timeout=0, thread_local=False)
        self._holder = folder / f"{name}.pid"

    def acquire(self) -> None:
        """Hold it.

        Raises:
            StoreError: Somebody else does, or its file cannot be written.
        """
        folder = self._holder.parent
        with reporting_faults(folder, self._wait_s):
            for own in (folder.parent, folder):  # a mode is for the last folder made alone
                own.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self._had(self._wait_s):
                raise self.refusal(self._where())
        with suppress(OSError):  # it only tells others who has the lock
            self._holder.write_text(str(os.getpid()))

    def refusal(self, where: str) -> StoreError:
        """The error of a lock that somebody else has.

        Args:
            where: Who has it, in parentheses; empty where that is not known.
        """
        return StoreError(
            f"run {self.run} goes on in another place already{where}",
            kind="locked",
            expected="one process that goes on with a run",
            fix=f"wait for it, or end it: unspoken runs cancel {self.run}",
        )

    def _had(self, wait_s: float) -> bool:
        try:
            self._lock.acquire(timeout=wait_s)
        except Timeout:
            return False
        except NotImplementedError as error:  # a file system without locks
            raise OSError(str(error)) from error
        return True

    @property
    def held_elsewhere(self) -> bool:
        """Whether somebody else holds it at this moment."""
        with reporting_faults(self._holder.parent, 0.0):
            if not Path(self._lock.lock_file).exists():
                return False
            if not self._had(0.0):
                return True
        self._lock.release()
        return False

    def release(self) -> None:
        """Give it back; once is enough."""
        if self._lock.is_locked:
            with suppress(OSError):
                self._holder.unlink(missing_ok=True)
            self._lock.release()

    def remove(self) -> None:
        """Remove its files while it is held; who waits for it makes them anew."""
        for file in (self._holder, Path(self._lock.lock_file)):
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def _where(self) -> str:
        with suppress(OSError, ValueError):
            return f" (process {int(self._holder.read_text())})"
        return ""


@contextmanager
def none_held(folder: Path) -> Iterator[None]:
    """Keep every run that there is from going on meanwhile.

    Args:
        folder: Where locks are.

    Raises:
        StoreError: One goes on.
    """
    with ExitStack() as held:
        for file in folder.glob("*.lock"):
            try:
                held.enter_context(FileLock(file, timeout=0))
            except Timeout:
                raise StoreError(
                    f"a run of the store {folder.parent} goes on",
                    kind="locked",
                    expected="a store that nobody uses",
                    fix="wait for it, or cancel it: see `unspoken runs list`",
                ) from None
        yield
