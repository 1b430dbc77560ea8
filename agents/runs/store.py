"""The store of runs: one SQLite file in a folder, with locks and states beside it.

Every change is one transaction, in a write-ahead log, so that a process may die at any moment. Who
reads sees whole changes only. One process at a time goes on with a run: it holds the run's lock,
which the system takes back when the process dies.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shutil import rmtree
from typing import TypeVar

import platformdirs

from unspoken.agents.runs import changes
from unspoken.agents.runs.database import connect, transaction
from unspoken.agents.runs.faults import reporting_faults
from unspoken.agents.runs.lock import SHORT_S, RunLock, none_held
from unspoken.agents.runs.records import CallRecord, Origin, Question, Status, StoredRun, TurnRecord
from unspoken.agents.runs.rows import TURN, calls_of, questions_of, runs_of, turn_of
from unspoken.channels.errors import InputError, StoreError
from unspoken.channels.storage.forks import ForkLock

Result = TypeVar("Result")

Computed = tuple[str, TurnRecord, Collection[str]]
"""A computed turn, and the digests of those that it takes the place of."""

Over = tuple[int, str, int, str]
"""A turn that is over: its place in the order of the run, its agent, its number and its words."""

_INHERITED: list[sqlite3.Connection] = []
"""Connections that parent processes have opened."""

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
            self._leave_inherited()
            if self._opened is not None:
                self._opened[1].close()
            self._opened = None

    def lock(self, run: str) -> RunLock:
        """The lock of a run, not held yet."""
        return RunLock(self._locks, run, min(self._wait_s, SHORT_S))

    @property
    def _locks(self) -> Path:
        return self.folder / "locks"

    @property
    def _is_there(self) -> bool:
        with reporting_faults(self.file, self._wait_s):
            return self.file.exists()

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
        if not self._is_there:
            return None
        return self._read(lambda db: next(runs_of(db, "WHERE id = ?", (run,)), None))

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
        if not self._is_there:
            return []
        return self._read(lambda db: list(runs_of(db, "ORDER BY created DESC, id", ())))

    def mark(
        self, run: str, status: Status, outputs: dict[str, str] | None = None, error: str = ""
    ) -> None:
        """Say where a run is; what a person has cancelled stays so."""
        told = None if outputs is None else json.dumps(outputs, ensure_ascii=False)
        sql = "UPDATE runs SET status = ?, outputs = ?, error = ?, updated = ? "
        row = (status, told, error, time.time(), run)
        self._change(lambda db: db.execute(f"{sql}WHERE id = ? AND status != 'cancelled'", row))

    def cancel(self, run: str) -> bool:
        """Cancel a run that goes on or waits; False for one that is over, which stays as it is."""
        sql = "UPDATE runs SET status = 'cancelled', updated = ? "
        sql += "WHERE id = ? AND status IN ('running', 'paused')"
        return bool(self._change(lambda db: db.execute(sql, (time.time(), run)).rowcount))

    def go_on(self, run: str, *, revive: bool = False, origin: Origin | None = None) -> bool:
        """Mark a run as running again; False for one that was cancelled.

        Args:
            run: The run.
            revive: Whether one that was cancelled goes on too.
            origin: What it goes on as; the order of its turns is then forgotten. None for the same.
        """
        sql = "UPDATE runs SET status = 'running', outputs = NULL, error = '', updated = ?, pid = ?"
        sql += " WHERE id = ? AND (status != 'cancelled' OR ?)"

        def change(db: sqlite3.Connection) -> bool:
            if not db.execute(sql, (time.time(), os.getpid(), run, revive)).rowcount:
                return False
            if origin is not None:
                text = json.dumps(asdict(origin), ensure_ascii=False)
                db.execute("UPDATE runs SET origin = ? WHERE id = ?", (text, run))
                changes.forget_order(db, run)
            return True

        return self._change(change)

    def turns(self, run: str) -> list[TurnRecord]:
        """Its computed turns, in the order in which they ended."""
        sql = f"SELECT {TURN} FROM turns WHERE run = ? ORDER BY rowid"
        return self._read(lambda db: [turn_of(row) for row in db.execute(sql, (run,))])

    def order(self, run: str) -> list[tuple[str, int]]:
        """The agents' turns that were handed over, as (agent, turn), in that order."""
        sql = "SELECT agent, turn FROM handed_over WHERE run = ? ORDER BY place"
        return self._read(lambda db: [(row[0], row[1]) for row in db.execute(sql, (run,))])

    def words(self, run: str) -> list[tuple[str, int, str]]:
        """What was handed over, as (agent, turn, text), in order; then that of sub-workflows."""
        sql = f"SELECT run, agent, turn, text FROM handed_over WHERE {changes.WITHIN} "
        sql += "ORDER BY run, place"

        def read(db: sqlite3.Connection) -> list[tuple[str, int, str]]:
            rows = db.execute(sql, changes.within(run))
            return [(f"{changes.scope_of(key)}{who}", turn, text) for key, who, turn, text in rows]

        return self._read(read)

    def told(self, run: str) -> list[str]:
        """Its events as JSON texts, in order."""
        sql = "SELECT event FROM told WHERE run = ? ORDER BY number"
        return self._read(lambda db: [row[0] for row in db.execute(sql, (run,))])

    def add_told(self, run: str, told: Sequence[tuple[int, str]]) -> None:
        """Keep events that belong to no turn that was handed over."""
        self._change(lambda db: changes.add_told(db, run, told))

    def calls(self, run: str) -> list[CallRecord]:
        """Its calls of tools."""
        return self._read(lambda db: calls_of(db, run))

    def hand_over(
        self,
        run: str,
        over: Sequence[Over],
        told: Sequence[tuple[int, str]] = (),
        computed: Sequence[Computed] = (),
    ) -> bool:
        """Note that turns are over, before anybody reads them; whether the run may go on.

        `told` are the events since the last ones, each with its number, and `computed` the turns
        that are not kept yet, each with its run and the digests in whose place it stands.
        """

        def change(db: sqlite3.Connection) -> bool:
            for whose, record, instead_of in computed:
                changes.add_turn(db, whose, record, instead_of)
            sql = "INSERT OR REPLACE INTO handed_over VALUES (?, ?, ?, ?, ?)"
            db.executemany(sql, [(run, *one) for one in over])
            changes.add_told(db, run, told)
            return changes.goes_on(db, run)

        return self._change(change)

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

    def note_question(self, run: str, question: Question) -> str | None:
        """Keep a question, or the answer to it; the answer that counts, which is the first one."""
        data = asdict(question)
        marks = ", ".join("?" * (1 + len(data)))
        sql = f"INSERT OR REPLACE INTO questions (run, {', '.join(data)}) VALUES ({marks})"

        def change(db: sqlite3.Connection) -> str | None:
            for known in questions_of(db, run):
                if known.answer is not None and replace(known, answer=None) == asked:
                    return known.answer
            db.execute(sql, (run, *data.values()))
            return question.answer

        asked = replace(question, answer=None)
        return self._change(change, durable=True)

    def answer(self, run: str, answers: Mapping[str, str]) -> None:
        """Keep answers to open questions, all of them or none.

        Raises:
            InputError: One was answered meanwhile.
        """
        sql = "UPDATE questions SET answer = ? WHERE run = ? AND id = ? AND answer IS NULL"

        def change(db: sqlite3.Connection) -> None:
            for name, words in answers.items():
                if not db.execute(sql, (words, run, name)).rowcount:
                    raise InputError(
                        f"the question {name!r} of run {run} was answered meanwhile",
                        expected="an open question",
                        fix=f"see unspoken runs show {run}",
                    )

        self._change(change, durable=True)

    def answer_again(self, run: str, answered: Sequence[Question]) -> None:
        """Take the answers to questions back for others, and what was handed over since."""
        sql = "UPDATE questions SET answer = ? WHERE run = ? AND id = ?"
        status = "UPDATE runs SET status = 'paused', error = '' "
        status += "WHERE id = ? AND status != 'cancelled'"

        def change(db: sqlite3.Connection) -> None:
            for one in answered:
                db.execute(sql, (one.answer, run, one.id))
                changes.take_back(db, run, one.agent, one.turn)
            db.execute(status, (run,))

        self._change(change, durable=True)

    def question(self, run: str, name: str) -> Question | None:
        """A question of a run, with its answer; None where it was not asked."""
        return next((q for q in self._read(lambda db: questions_of(db, run)) if q.id == name), None)

    def remove(self, run: str) -> None:
        """Remove a run; states that no other run has go too."""
        self._change(lambda db: changes.remove(db, run))
        # No turn is put in meanwhile, and who puts one in looks for its state afterwards.
        self._change(lambda db: changes.sweep(db, self.states))

    def clear(self) -> None:
        """Remove the whole store, of whatever version; the files of its locks stay.

        Raises:
            StoreError: A run goes on.
        """
        with none_held(self._locks), reporting_faults(self.file, self._wait_s):
            self.close()
            for file in self.folder.glob("runs.sqlite*"):
                file.unlink(missing_ok=True)
            rmtree(self.states, ignore_errors=True)

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
                with transaction(db):
                    return change(db)
            finally:
                if durable:
                    db.execute("PRAGMA synchronous = NORMAL")

    def _connection(self) -> sqlite3.Connection:
        """The open file; one that a parent process has opened is left to it."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._leave_inherited()
            db = connect(self.file, self._wait_s, durable=self._durable)
            self._opened = os.getpid(), db
        return self._opened[1]

    def _leave_inherited(self) -> None:
        """Never close a connection of a parent process: SQLite forbids it."""
        if self._opened is not None and self._opened[0] != os.getpid():
            _INHERITED.append(self._opened[1])
            self._opened = None
