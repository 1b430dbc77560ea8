"""What goes wrong with a store's file, in errors that a person can act on."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unspoken.channels.errors import StoreError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def reporting_faults(file: Path, wait_s: float) -> Iterator[None]:
    """Raise what SQLite and the disk say as a `StoreError`.

    Args:
        file: The store's file.
        wait_s: How long a change waits for others.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _of_sqlite(error, file, wait_s) from error
    except OSError as error:
        raise _of_disk(error, file) from error


def _of_sqlite(error: sqlite3.Error, file: Path, wait_s: float) -> StoreError:
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return full(file)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(
            f"the store {file} is locked by another process, for longer than {wait_s:g} s",
            kind="locked",
            expected="a store whose changes take moments",
            fix="see which process holds the file open, and go on with the run afterwards",
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return StoreError(
            f"the store {file} cannot be read: {error}",
            kind="broken",
            expected="a store of runs",
            fix="name another folder with --store, or remove it: `unspoken runs clean --all`",
        )
    return StoreError(
        f"the store {file} cannot be used: {error}",
        kind="broken",
        expected="a folder that can be written",
        fix="check who may write there, or name another folder with --store",
    )


def _of_disk(error: OSError, file: Path) -> StoreError:
    if error.errno in _FULL:
        return full(file)
    return StoreError(
        f"the store {file} cannot be used: {error.strerror or error}",
        kind="broken",
        expected="a folder that can be written",
        fix="check the path and who may write there, or name another folder with --store",
    )


def full(file: Path) -> StoreError:
    """The error of a disk without room."""
    return StoreError(
        f"the disk of the store {file} is full",
        kind="full",
        expected="room for what a run writes",
        fix="free some space, and go on with the run: it is as it was at its last turn. "
        "`unspoken runs clean` removes runs that have finished",
    )
