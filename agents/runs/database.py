"""The file of a store: opened, made where it is not there, and changed in transactions."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unspoken.agents.runs.schema import SCHEMA, VERSION, require_ours

_AGAIN_S = 0.02


def connect(file: Path, wait_s: float, *, durable: bool) -> sqlite3.Connection:
    """Open a store's file; several processes may make it at once.

    Args:
        file: The file.
        wait_s: Seconds that a change waits for those of other processes.
        durable: Whether changes outlive a power cut, where they ask for it.

    Raises:
        StoreError: It is no store, or one of another version.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):  # the log beside it gets the mode of this file
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    db = sqlite3.connect(file, timeout=wait_s, isolation_level=None, check_same_thread=False)
    try:
        require_ours(db, file)
        if not durable:
            db.execute("PRAGMA synchronous = OFF")
        _write_ahead(db, wait_s)
        if durable:
            db.execute("PRAGMA synchronous = NORMAL")
        if _version(db) != VERSION:
            with transaction(db):
                if _version(db) != VERSION:  # another process may have been quicker
                    for statement in SCHEMA:
                        db.execute(statement)
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of a change, or nothing of it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:  # a commit without room may leave the transaction open
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _write_ahead(db: sqlite3.Connection, wait_s: float) -> None:
    """Use a write-ahead log; SQLite itself does not wait for others here."""
    until = time.monotonic() + wait_s
    while db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(_AGAIN_S)
