"""One process at a time per pair of models in a store."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.storage.side import pair_digest

__all__ = ["pair_lock", "unwritable"]

POLL_S = 0.2


@contextmanager
def pair_lock(
    root: Path,
    sharer: ModelIdentity,
    receiver: ModelIdentity,
    doing: str,
    waiting: Callable[[str], None] | None = None,
    limit_s: float | None = None,
) -> Iterator[None]:
    """Be the only one, on this machine, that works on a pair in a store.

    Args:
        root: The store.
        sharer: Whose cache is read.
        receiver: Whose cache is made.
        doing: What is done, as in "another process is …".
        waiting: Told, once, if another process has the lock.
        limit_s: The longest to wait, in seconds; None waits for as long as it takes.

    Raises:
        BridgeError: The wait was too long, or the store cannot be written.
    """
    file = root / f".{pair_digest(sharer, receiver)}.lock"
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting:
                waiting(f"another process is {doing}; waiting for it ({file})")
            lock.acquire(timeout=-1 if limit_s is None else limit_s, poll_interval=POLL_S)
    except Timeout:
        raise BridgeError(
            f"another process has been {doing} for more than {limit_s:g} s",
            expected=f"the lock {file} to be let go",
            fix="wait for that process, or end it",
        ) from None
    except OSError as error:
        raise unwritable(root, error) from error
    try:
        yield
    finally:
        lock.release()


def unwritable(root: Path, error: OSError) -> BridgeError:
    """The error of a store that cannot be written, with what the system says of it."""
    return BridgeError(
        f"the store {root} cannot be written: {error}",
        expected="a folder that you may write, on a disk with room",
        fix="choose another place with $UNSPOKEN_CACHE, or free some space",
    )
