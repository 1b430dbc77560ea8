"""The tables of a store, and whether a file is one."""

import sqlite3
from pathlib import Path

from unspoken.channels.errors import StoreError

VERSION = 2
"""Of the tables; a store of another version is refused."""

_OURS = 0x756E7370
"""What marks a file as a store: ``unsp``."""

SCHEMA = (
    f"PRAGMA application_id = {_OURS}",
    """CREATE TABLE runs (
        id TEXT PRIMARY KEY, workflow TEXT NOT NULL, status TEXT NOT NULL, created REAL NOT NULL,
        updated REAL NOT NULL, origin TEXT NOT NULL, outputs TEXT, error TEXT NOT NULL DEFAULT '',
        pid INTEGER NOT NULL)""",
    """CREATE TABLE turns (
        run TEXT NOT NULL, agent TEXT NOT NULL, turn INTEGER NOT NULL, item INTEGER NOT NULL,
        digest TEXT NOT NULL, tokens TEXT NOT NULL, finish TEXT NOT NULL, usage TEXT NOT NULL,
        likelihoods TEXT NOT NULL, carried TEXT NOT NULL, state TEXT NOT NULL,
        PRIMARY KEY (run, agent, turn, item, digest))""",
    """CREATE TABLE handed_over (
        run TEXT NOT NULL, place INTEGER NOT NULL, agent TEXT NOT NULL, turn INTEGER NOT NULL,
        text TEXT NOT NULL, PRIMARY KEY (run, place))""",
    """CREATE TABLE calls (
        run TEXT NOT NULL, agent TEXT NOT NULL, turn INTEGER NOT NULL, item INTEGER NOT NULL,
        number INTEGER NOT NULL, tool TEXT NOT NULL, arguments TEXT NOT NULL, result TEXT,
        PRIMARY KEY (run, agent, turn, item, number))""",
    """CREATE TABLE questions (
        run TEXT NOT NULL, id TEXT NOT NULL, agent TEXT NOT NULL, turn INTEGER NOT NULL,
        kind TEXT NOT NULL, text TEXT NOT NULL, receiver TEXT NOT NULL, answer TEXT,
        PRIMARY KEY (run, id))""",
    """CREATE TABLE told (
        run TEXT NOT NULL, number INTEGER NOT NULL, event TEXT NOT NULL,
        PRIMARY KEY (run, number))""",
    f"PRAGMA user_version = {VERSION}",
)


def require_ours(db: sqlite3.Connection, file: Path) -> None:
    """Refuse a file that is no store, or one of another version; an empty one is fine.

    Raises:
        StoreError: It is.
    """
    tables = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    if not tables:
        return
    if db.execute("PRAGMA application_id").fetchone()[0] != _OURS:
        raise StoreError(
            f"{file} is a database of something else",
            kind="broken",
            expected="a store of runs, or a folder without one",
            fix="name another folder with --store, or in Python store=",
        )
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != VERSION:
        raise StoreError(
            f"{file} is a store of version {version}",
            kind="version",
            expected=f"version {VERSION}, which this release reads",
            fix="finish its runs with the release that made it, and remove the store with "
            "`unspoken runs clean --all`, or name another folder with --store",
        )
