"""What stands in a store's tables, as values."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from unspoken.agents.runs.changes import WITHIN, scope_of, within
from unspoken.agents.runs.records import CallRecord, Origin, Question, StoredRun, TurnRecord

TURN = "agent, turn, item, digest, tokens, finish, usage, likelihoods, carried, state"
_CALL = "agent, turn, item, number, tool, arguments, result"
_QUESTION = "id, agent, turn, kind, text, receiver, answer"
_RUN = "id, status, created, updated, origin, outputs, error"


def runs_of(db: sqlite3.Connection, which: str, values: Sequence[object]) -> Iterator[StoredRun]:
    """Runs, by the end of a query."""
    with closing(db.execute(f"SELECT {_RUN} FROM runs {which}", values)) as cursor:
        rows = cursor.fetchall()
    for name, status, created, updated, origin, outputs, error in rows:
        count = f"SELECT COUNT(*) FROM handed_over WHERE {WITHIN}"
        yield StoredRun(
            id=name,
            status=status,
            created=created,
            updated=updated,
            origin=Origin(**json.loads(origin)),
            turns=db.execute(count, within(name)).fetchone()[0],
            questions=tuple(questions_of(db, name)),
            calls=tuple(call for call in every_call_of(db, name) if call.result is None),
            outputs=None if outputs is None else json.loads(outputs),
            error=error,
        )


def turn_of(row: Sequence[Any]) -> TurnRecord:
    """A computed turn of a row of the columns `TURN`."""
    data = dict(zip(TURN.split(", "), row, strict=True))
    for name in ("tokens", "usage", "likelihoods", "carried"):
        data[name] = json.loads(data[name])
    data["tokens"], data["likelihoods"] = tuple(data["tokens"]), tuple(data["likelihoods"])
    data["carried"] = tuple((edge, report, seconds) for edge, report, seconds in data["carried"])
    return TurnRecord(**data)


def calls_of(db: sqlite3.Connection, run: str) -> list[CallRecord]:
    """The calls of tools of a run, in order."""
    rows = db.execute(f"SELECT {_CALL} FROM calls WHERE run = ? ORDER BY rowid", (run,))
    return [CallRecord(**dict(zip(_CALL.split(", "), row, strict=True))) for row in rows]


def every_call_of(db: sqlite3.Connection, run: str) -> list[CallRecord]:
    """The same with those of its sub-workflows, whose agents have their scope before the name."""
    sql = f"SELECT run, {_CALL} FROM calls WHERE {WITHIN} ORDER BY rowid"
    rows = db.execute(sql, within(run)).fetchall()
    calls = []
    for key, *row in rows:
        call = CallRecord(**dict(zip(_CALL.split(", "), row, strict=True)))
        calls.append(replace(call, agent=f"{scope_of(key)}{call.agent}"))
    return calls


def questions_of(db: sqlite3.Connection, run: str) -> list[Question]:
    """What a run asked, in order."""
    rows = db.execute(f"SELECT {_QUESTION} FROM questions WHERE run = ? ORDER BY rowid", (run,))
    return [Question(**dict(zip(_QUESTION.split(", "), row, strict=True))) for row in rows]
