"""The store of runs: one SQLite file in a folder, with locks and states beside it.

Every change is one transaction, in a write-ahead log, so that a process may die at any moment. Who
reads sees whole changes only. One process at a time goes on with a run: it holds the run's lock,
which the system takes back when the process dies.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar

import platformdirs

from unspoken.agents.runs.faults import reporting_faults
from unspoken.agents.runs.lock import RunLock
from unspoken.agents.runs.records import CallRecord, Origin, Question, Status, StoredRun, TurnRecord
from unspoken.agents.runs.schema import SCHEMA, VERSION, require_ours
from unspoken.channels.errors import StoreError
from unspoken.channels.storage.forks import ForkLock

Result = TypeVar("Result")

WAIT_S = 10.0
"""How long a change waits for those of other processes."""


def default_folder() -> Path:
    """``$UNSPOKEN_RUNS``, else ``runs`` in the user's data folder."""
    given = os.environ.get("UNSPOKEN_RUNS")
    if given:
        return Path(given).expanduser().absolute()
    return platformdirs.user_data_path("unspoken", appauthor=False) / "runs"


class RunStore:
    """Runs on disk. All of it may be called from any thread.

    Args:
        folder: Where they are; None for `default_folder`. It is made by the first run, for its
            owner alone: it holds inputs and what agents wrote.
        wait_s: Seconds that a change waits for those of other processes.
        durable: Whether what is kept outlives a power cut: calls of tools and answers of people
            then wait for the disk. It outlives the death of a process in any case.
    """

    def __init__(
        self, folder: str | Path | None = None, *, wait_s: float = WAIT_S, durable: bool = True
    ) -> None:
        self.folder = default_folder() if folder is None else Path(folder).expanduser()
        self.file = self.folder / "runs.sqlite"
        self._wait_s, self._lock = wait_s, ForkLock()
        self._durable = durable
        self._opened: tuple[int, sqlite3.Connection] | None = None

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._opened is not None and self._opened[0] == os.getpid():
                self._opened[1].close()
            self._opened = None

    def lock(self, run: str) -> RunLock:
        """The lock of a run, not held yet."""
        return RunLock(self.folder / "locks", run)

    @property
    def states(self) -> Path:
        """Where states are, each under the digest of its bytes."""
        return self.folder / "states"

    def begin(self, run: str, origin: Origin) -> None:
        """Put a new run in."""
        now, text = time.time(), json.dumps(asdict(origin), ensure_ascii=False)
        row = (run, str(origin.workflow.get("name", "")), "running", now, now, text, os.getpid())
        sql = "INSERT INTO runs (id, workflow, status, created, updated, origin, pid)"
        self._change(lambda db: db.execute(f"{sql} VALUES (?, ?, ?, ?, ?, ?, ?)", row))

    def find(self, run: str) -> StoredRun | None:
        """A run; None where there is none of this id."""
        if not self.file.exists():
            return None
        return self._read(lambda db: next(_runs(db, "WHERE id = ?", (run,)), None))

    def get(self, run: str) -> StoredRun:
        """A run.

        Raises:
            StoreError: There is none of this id.
        """
        found = self.find(run)
        if found is not None:
            return found
        ids = [one.id for one in self.runs()][:10]
        raise StoreError(
            f"there is no run {run!r} in {self.folder}",
            kind="missing",
            expected="one of: " + ", ".join(ids) if ids else "a run, and there is none yet",
            fix="see `unspoken runs list`; --store names another folder",
        )

    def runs(self) -> list[StoredRun]:
        """Every run, the last one first."""
        if not self.file.exists():
            return []
        return self._read(lambda db: list(_runs(db, "ORDER BY created DESC, id", ())))

    def mark(
        self, run: str, status: Status, outputs: dict[str, str] | None = None, error: str = ""
    ) -> None:
        """Say where a run is; what a person has cancelled stays so."""
        told = None if outputs is None else json.dumps(outputs, ensure_ascii=False)
        sql = "UPDATE runs SET status = ?, outputs = ?, error = ?, updated = ?, pid = ? "
        sql += "WHERE id = ? AND (status != 'cancelled' OR ? = 'running')"
        row = (status, told, error, time.time(), os.getpid(), run, status)
        self._change(lambda db: db.execute(sql, row))

    def turns(self, run: str) -> list[TurnRecord]:
        """Its computed turns, in the order in which they ended."""
        sql = f"SELECT {_TURN} FROM turns WHERE run = ? ORDER BY rowid"
        return self._read(lambda db: [_turn(row) for row in db.execute(sql, (run,))])

    def order(self, run: str) -> list[tuple[str, int]]:
        """The agents' turns that were handed over, as (agent, turn), in that order."""
        sql = "SELECT agent, turn FROM handed_over WHERE run = ? ORDER BY place"
        return self._read(lambda db: [(row[0], row[1]) for row in db.execute(sql, (run,))])

    def words(self, run: str) -> list[tuple[str, int, str]]:
        """What was handed over, as (agent, turn, text), in order."""
        sql = "SELECT agent, turn, text FROM handed_over WHERE run = ? ORDER BY place"
        return self._read(lambda db: [tuple(row) for row in db.execute(sql, (run,))])

    def calls(self, run: str) -> list[CallRecord]:
        """Its calls of tools."""
        return self._read(lambda db: _calls(db, run))

    def add_turn(self, run: str, record: TurnRecord) -> None:
        """Keep a computed turn."""
        data = asdict(record)
        for name in ("tokens", "usage", "likelihoods", "carried"):
            data[name] = json.dumps(data[name], default=str)
        marks = ", ".join("?" * (1 + len(data)))
        sql = f"INSERT OR REPLACE INTO turns (run, {', '.join(data)}) VALUES ({marks})"
        self._change(lambda db: db.execute(sql, (run, *data.values())))

    def hand_over(self, run: str, place: int, agent: str, turn: int, text: str) -> bool:
        """Note that a turn is over, before anybody reads it; whether the run may go on."""

        def change(db: sqlite3.Connection) -> bool:
            sql = "INSERT OR REPLACE INTO handed_over VALUES (?, ?, ?, ?, ?)"
            db.execute(sql, (run, place, agent, turn, text))
            row = db.execute("SELECT status FROM runs WHERE id = ?", (run,)).fetchone()
            return row is not None and row[0] != "cancelled"

        return self._change(change)

    def drop_order(self, run: str) -> None:
        """Forget in which order turns were handed over, where a run goes on as another one."""
        self._change(lambda db: db.execute("DELETE FROM handed_over WHERE run = ?", (run,)))

    def begin_call(self, run: str, call: CallRecord) -> None:
        """Keep a call that is about to be made.

        It is on the disk when this returns, whatever becomes of the machine.
        """
        data = asdict(call)
        marks = ", ".join("?" * (1 + len(data)))
        sql = f"INSERT INTO calls (run, {', '.join(data)}) VALUES ({marks})"
        self._change(lambda db: db.execute(sql, (run, *data.values())), durable=True)

    def end_call(self, run: str, call: CallRecord) -> None:
        """Keep the result of a call, as `begin_call` does."""
        sql = "UPDATE calls SET result = ? WHERE run = ? AND agent = ? AND turn = ? AND item = ? "
        row = (call.result, run, call.agent, call.turn, call.item, call.number)
        self._change(lambda db: db.execute(f"{sql}AND number = ?", row), durable=True)

    def note_question(self, run: str, question: Question) -> None:
        """Keep a question, or the answer to it."""
        data = asdict(question)
        marks = ", ".join("?" * (1 + len(data)))
        sql = f"INSERT OR REPLACE INTO questions (run, {', '.join(data)}) VALUES ({marks})"
        self._change(lambda db: db.execute(sql, (run, *data.values())), durable=True)

    def question(self, run: str, name: str) -> Question | None:
        """A question of a run, with its answer; None where it was not asked."""
        asked = self._read(lambda db: _questions(db, run))
        return next((one for one in asked if one.id == name), None)

    def remove(self, run: str) -> None:
        """Remove a run; states that no other run has go too."""
        tables = ("turns", "handed_over", "calls", "questions")

        def change(db: sqlite3.Connection) -> None:
            for table in tables:
                db.execute(f"DELETE FROM {table} WHERE run = ?", (run,))
            db.execute("DELETE FROM runs WHERE id = ?", (run,))

        self._change(change)
        kept = self._read(lambda db: {row[0] for row in db.execute("SELECT state FROM turns")})
        for file in self.states.glob("*.packet") if self.states.is_dir() else ():
            if file.stem not in kept:
                file.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the whole store, of whatever version."""
        self.close()
        for file in self.folder.glob("runs.sqlite*"):
            file.unlink(missing_ok=True)
        for folder in (self.states, self.folder / "locks"):
            rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _read(self, read: Callable[[sqlite3.Connection], Result]) -> Result:
        with self._lock, reporting_faults(self.file, self._wait_s):
            return read(self._connection())

    def _change(
        self, change: Callable[[sqlite3.Connection], Result], *, durable: bool = False
    ) -> Result:
        with self._lock, reporting_faults(self.file, self._wait_s):
            db, durable = self._connection(), durable and self._durable
            if durable:
                db.execute("PRAGMA synchronous = FULL")
            try:
                with _transaction(db):
                    return change(db)
            finally:
                if durable:
                    db.execute("PRAGMA synchronous = NORMAL")

    def _connection(self) -> sqlite3.Connection:
        """The open file; one that a parent process has opened is left to it."""
        if self._opened is not None and self._opened[0] == os.getpid():
            return self._opened[1]
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        db = sqlite3.connect(
            self.file, timeout=self._wait_s, isolation_level=None, check_same_thread=False
        )
        try:
            require_ours(db, self.file)
            if not self._durable:
                db.execute("PRAGMA synchronous = OFF")
            db.execute("PRAGMA journal_mode = WAL")
            if self._durable:
                db.execute("PRAGMA synchronous = NORMAL")
            if db.execute("PRAGMA user_version").fetchone()[0] != VERSION:
                with _transaction(db):
                    for statement in SCHEMA:
                        db.execute(statement)
                with suppress(OSError):
                    self.file.chmod(0o600)
        except BaseException:
            db.close()
            raise
        self._opened = os.getpid(), db
        return db


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


_TURN = "agent, turn, item, digest, tokens, finish, usage, likelihoods, carried, state"
_CALL = "agent, turn, item, number, tool, arguments, result"
_QUESTION = "id, agent, turn, kind, text, receiver, answer"
_RUN = "id, status, created, updated, origin, outputs, error"


def _runs(db: sqlite3.Connection, which: str, values: Sequence[object]) -> Iterator[StoredRun]:
    with closing(db.execute(f"SELECT {_RUN} FROM runs {which}", values)) as cursor:
        rows = cursor.fetchall()
    for name, status, created, updated, origin, outputs, error in rows:
        count = "SELECT COUNT(*) FROM handed_over WHERE run = ?"
        yield StoredRun(
            id=name,
            status=status,
            created=created,
            updated=updated,
            origin=Origin(**json.loads(origin)),
            turns=db.execute(count, (name,)).fetchone()[0],
            questions=tuple(_questions(db, name)),
            calls=tuple(call for call in _calls(db, name) if call.result is None),
            outputs=None if outputs is None else json.loads(outputs),
            error=error,
        )


def _turn(row: Sequence[Any]) -> TurnRecord:
    data = dict(zip(_TURN.split(", "), row, strict=True))
    for name in ("tokens", "usage", "likelihoods", "carried"):
        data[name] = json.loads(data[name])
    data["tokens"], data["likelihoods"] = tuple(data["tokens"]), tuple(data["likelihoods"])
    data["carried"] = tuple((edge, report, seconds) for edge, report, seconds in data["carried"])
    return TurnRecord(**data)


def _calls(db: sqlite3.Connection, run: str) -> list[CallRecord]:
    rows = db.execute(f"SELECT {_CALL} FROM calls WHERE run = ? ORDER BY rowid", (run,))
    return [CallRecord(**dict(zip(_CALL.split(", "), row, strict=True))) for row in rows]


def _questions(db: sqlite3.Connection, run: str) -> list[Question]:
    rows = db.execute(f"SELECT {_QUESTION} FROM questions WHERE run = ? ORDER BY rowid", (run,))
    return [Question(**dict(zip(_QUESTION.split(", "), row, strict=True))) for row in rows]
