"""Changes of a store's tables that concern more than one row of one run.

What a sub-workflow keeps stands under a key of its own, ``RUN/SCOPE``, beside that of its run.
"""

import json
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path

from unspoken.agents.runs.records import TurnRecord

WITHIN = "(run = ? OR (run > ? AND run < ?))"
"""Of a run, or of a sub-workflow in it; with the values of `within`."""

TABLES = ("turns", "handed_over", "calls", "questions", "told")

_AFTER_SLASH = "0"  # the character after a slash: keys of sub-workflows stand between the two


def within(run: str) -> tuple[str, str, str]:
    """The values of `WITHIN` for a run, or for a sub-workflow."""
    return run, f"{run}/", f"{run}{_AFTER_SLASH}"


def root_of(run: str) -> str:
    """The run that a key belongs to."""
    return run.partition("/")[0]


def scope_of(run: str) -> str:
    """What stands before the names of a sub-workflow's agents; empty for the run itself."""
    _, slash, scope = run.partition("/")
    return f"{scope}/" if slash else ""


def goes_on(db: sqlite3.Connection, run: str) -> bool:
    """Whether nobody has cancelled the run."""
    sql = "SELECT status FROM runs WHERE id = ?"
    row = db.execute(sql, (root_of(run),)).fetchone()
    return row is not None and row[0] != "cancelled"


def remove(db: sqlite3.Connection, run: str) -> None:
    """Remove a run, with what its sub-workflows keep."""
    for table in TABLES:
        db.execute(f"DELETE FROM {table} WHERE {WITHIN}", within(run))
    db.execute("DELETE FROM runs WHERE id = ?", (run,))


def add_turn(
    db: sqlite3.Connection, run: str, record: TurnRecord, instead_of: Collection[str] = ()
) -> None:
    """Put a computed turn in, in place of others of its agent, turn and item, by digest."""
    place = run, record.agent, record.turn, record.item
    sql = "DELETE FROM turns WHERE run = ? AND agent = ? AND turn = ? AND item = ? AND digest = ?"
    for digest in instead_of:
        db.execute(sql, (*place, digest))
    data = {one.name: getattr(record, one.name) for one in fields(record)}
    for name in ("tokens", "usage", "likelihoods", "carried"):
        data[name] = json.dumps(data[name], default=str)
    marks = ", ".join("?" * (1 + len(data)))
    sql = f"INSERT OR REPLACE INTO turns (run, {', '.join(data)}) VALUES ({marks})"
    db.execute(sql, (run, *data.values()))


def add_told(db: sqlite3.Connection, run: str, rows: Sequence[tuple[int, str]]) -> None:
    """Put events in, each with its number."""
    db.executemany(
        "INSERT OR REPLACE INTO told VALUES (?, ?, ?)",
        [(root_of(run), number, event) for number, event in rows],
    )


def forget_order(db: sqlite3.Connection, run: str) -> None:
    """Forget the order of a run's turns, and its events, which are told again."""
    db.execute(f"DELETE FROM handed_over WHERE {WITHIN}", within(run))
    db.execute("DELETE FROM told WHERE run = ?", (run,))


def take_back(db: sqlite3.Connection, run: str, agent: str, turn: int) -> None:
    """Forget that an agent's turn was handed over, and all turns that were after it.

    What they computed stays, and serves again where they read the same. The events of the run are
    told again.

    Args:
        db: The store.
        run: The run.
        agent: The agent, with the scope of its sub-workflow before its name.
        turn: Its turn.
    """
    db.execute("DELETE FROM told WHERE run = ?", (run,))
    *scopes, name = agent.split("/")
    key, places = run, list[tuple[str, str, int]]()
    for scope in scopes:
        outer, which = scope.split(".")[:2]
        places.append((key, outer, int(which)))
        key = f"{key}/{scope}"
    for where, who, number in (*places, (key, name, turn)):
        sql = "SELECT place FROM handed_over WHERE run = ? AND agent = ? AND turn = ?"
        row = db.execute(sql, (where, who, number)).fetchone()
        if row is None:
            continue
        sql = "DELETE FROM handed_over WHERE run = ? AND place >= ? RETURNING agent, turn"
        for gone in db.execute(sql, (where, row[0])).fetchall():
            if gone != (who, number):
                _forget_inside(db, f"{where}/{gone[0]}.{gone[1]}")


def _forget_inside(db: sqlite3.Connection, scope: str) -> None:
    """Forget what the sub-workflows of a turn, and of its items, have handed over."""
    db.execute(f"DELETE FROM handed_over WHERE {WITHIN}", within(scope))
    items = (f"{scope}.", f"{scope}/")  # the character after a dot is a slash
    db.execute("DELETE FROM handed_over WHERE run > ? AND run < ?", items)


def sweep(db: sqlite3.Connection, states: Path) -> None:
    """Remove the states that no turn has."""
    kept = {row[0] for row in db.execute("SELECT state FROM turns")}
    for file in states.glob("*.packet") if states.is_dir() else ():
        if file.stem not in kept:
            file.unlink(missing_ok=True)
