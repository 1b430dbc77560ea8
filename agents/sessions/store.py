"""Sessions on disk: a folder for each, with one file of its turns and the packets of its states.

The file is replaced as a whole, so a process may die at any moment: a session is as it was before a
run, or after it. Folders go by digests of names, so that a name may be any text.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple

from blake3 import blake3

from unspoken.agents.runs.faults import reporting_faults
from unspoken.agents.runs.lock import RunLock
from unspoken.agents.runs.store import RunStore, default_folder
from unspoken.agents.sessions.records import VERSION, StoredSession, from_data, to_data
from unspoken.channels.errors import InputError, StoreError
from unspoken.channels.storage.files import replace_file

LONGEST_NAME = 200
"""Most characters of a name."""


def checked_name(name: object) -> str:
    """A session's name.

    Raises:
        InputError: It is none.
    """
    if isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable():
        return name
    raise InputError(
        f"{str(name)[:60]!r} cannot be the name of a session",
        expected=f"1 to {LONGEST_NAME} printable characters",
    )


class SessionLock(RunLock):
    """The lock of a session: one run at a time goes on with its conversations."""

    def refusal(self, where: str) -> StoreError:
        """The error of a session that is in use."""
        return locked(self.run, where)


def locked(name: str, where: str = "") -> StoreError:
    """The error of a session with which another run goes on."""
    return StoreError(
        f"another run goes on with the session {name!r}{where}",
        kind="locked",
        expected="one run at a time with a conversation",
        fix="wait until it has ended, or use a session of another name",
    )


class _Unreadable(NamedTuple):
    where: str
    error: StoreError


class SessionStore:
    """Sessions on disk. All of it may be called from any thread.

    Args:
        folder: Where they are: a folder, or that of a `RunStore`, with ``sessions`` in it. None for
            ``$UNSPOKEN_RUNS``, else ``runs`` in your data folder. It is made by the first run, for
            its owner alone: it holds what was said.
    """

    def __init__(self, folder: str | Path | RunStore | None = None) -> None:
        given = folder.folder if isinstance(folder, RunStore) else folder
        base = default_folder() if given is None else Path(given).expanduser()
        self.folder = base / "sessions"

    def folder_of(self, name: str) -> Path:
        """Where a session is, if there is one."""
        return self.folder / blake3(name.encode()).hexdigest(length=16)

    def lock(self, name: str) -> SessionLock:
        """The lock of a session, not held yet."""
        return self._lock_of(self.folder_of(checked_name(name)), name)

    def _lock_of(self, folder: Path, name: str) -> SessionLock:
        # The start of a folder's name, a digest, is the shorter digest that every release locks by.
        return SessionLock(self.folder / "locks", name, file=folder.name[:20])

    def sessions(self) -> list[StoredSession]:
        """Every session that can be read, the one used last first."""
        found = [one for one in self._all() if isinstance(one, StoredSession)]
        return sorted(found, key=lambda one: -one.updated)

    def unreadable(self) -> dict[str, StoreError]:
        """Why sessions cannot be read, by their folders' names; `delete` takes those too."""
        return {one.where: one.error for one in self._all() if isinstance(one, _Unreadable)}

    def _all(self) -> Iterator["StoredSession | _Unreadable"]:
        with reporting_faults(self.folder, 0.0):
            there = self.folder.is_dir()
            files = sorted(self.folder.glob("*/session.json")) if there else []
        for file in files:
            try:
                session = _read(file)
            except StoreError as error:
                yield _Unreadable(file.parent.name, error)
            else:
                if session is not None:
                    yield session

    def find(self, name: str) -> StoredSession | None:
        """A session; None where there is none of this name.

        Raises:
            StoreError: It cannot be read.
        """
        return _read(self.folder_of(name) / "session.json")

    def get(self, name: str) -> StoredSession:
        """A session.

        Raises:
            StoreError: There is none of this name, or it cannot be read.
        """
        found = self.find(name)
        if found is not None:
            return found
        names = [repr(one.name) for one in self.sessions()][:10]
        raise StoreError(
            f"there is no session {name!r} in {self.folder}",
            kind="missing",
            expected="one of: " + ", ".join(names) if names else "a session; there is none yet",
            fix="see `unspoken sessions list`; --store names another folder",
        )

    def bytes_of(self, name: str) -> int:
        """Bytes that a session takes."""
        count = 0
        for file in self.folder_of(name).glob("*"):
            with suppress(FileNotFoundError):  # a run has just put another in its place
                count += file.stat().st_size
        return count

    def save(self, session: StoredSession) -> None:
        """Put a session in place of what there was of it; its lock is held.

        Raises:
            StoreError: The disk is full, or the folder cannot be written.
        """
        folder = self.folder_of(session.name)
        text = json.dumps(to_data(session), ensure_ascii=False).encode()
        with reporting_faults(folder, 0.0):
            self.make(session.name)
            replace_file(folder / "session.json", lambda path: _write(path, text))
        kept = {"session.json", *(f"{one.state}.packet" for one in session.conversations)}
        with suppress(OSError):  # what is left goes with the next run
            for file in folder.iterdir():
                if file.name not in kept:
                    file.unlink(missing_ok=True)

    def make(self, name: str) -> Path:
        """The folder of a session, made where it is not there."""
        folder = self.folder_of(name)
        for own in (self.folder.parent, self.folder, folder):  # a mode is for the last one alone
            own.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def delete(self, name: str) -> bool:
        """Remove all of a session; whether there was one.

        Args:
            name: Its name; of one that cannot be read, and whose name nobody knows, its folder's.

        Raises:
            StoreError: A run goes on with it, or it cannot be removed.
        """
        folder = self.folder_of(name)
        if name in self.unreadable():
            folder = self.folder / name
        with reporting_faults(folder, 0.0):
            if not folder.exists():
                return False
        lock = self._lock_of(folder, name)
        lock.acquire()
        try:
            with reporting_faults(folder, 0.0):
                (folder / "session.json").unlink(missing_ok=True)  # from here on there is none
                rmtree(folder)
            lock.remove()
        finally:
            lock.release()
        return True


def _write(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(handle, "wb") as file:
        file.write(content)


def _read(file: Path) -> StoredSession | None:
    with reporting_faults(file, 0.0):
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
    try:
        data = json.loads(content)
        if data["version"] == VERSION:
            return from_data(data)
        version = int(data["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"the session in {file} cannot be read: {error!r}"[:300],
            kind="broken",
            expected="a session as a run has left it",
            fix=f"begin it anew: `unspoken sessions delete {file.parent.name}`",
        ) from error
    raise StoreError(
        f"the session in {file} is of version {version}",
        kind="version",
        expected=f"version {VERSION}, which this release reads",
        fix="use the release that wrote it, or begin anew: `unspoken sessions delete "
        f"{file.parent.name}`",
    )


def new_session(name: str) -> StoredSession:
    """A session without conversations."""
    now = time.time()
    return StoredSession(name=name, created=now, updated=now)
