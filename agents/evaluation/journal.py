"""An evaluation's folder: what it was begun with, and a line for every outcome.

``eval.json`` says what was set before the first row ran. ``outcomes.jsonl`` has one outcome a line,
written as soon as it is known, so a run that was interrupted goes on after the last whole line.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unspoken.agents.evaluation.outcome import Outcome
from unspoken.agents.runs.origin import changed
from unspoken.channels.errors import InputError, StoreError
from unspoken.channels.storage.files import read_json, write_json

MOST_SHOWN = 8
_BEGUN, _OUTCOMES, _LOCK = "eval.json", "outcomes.jsonl", ".lock"
_ARMS = "arms"
"""What each arm was begun with; of those alone that are there both times, for arms may be added."""


class Journal:
    """The outcomes of an evaluation, in a folder or in memory alone.

    Args:
        folder: The folder; None for none.

    Attributes:
        outcomes: All that are known, by row and arm, in the order in which they came.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.outcomes: dict[tuple[str, str], Outcome] = {}

    @contextmanager
    def open(self, origin: Mapping[str, Any]) -> Iterator[None]:
        """Take the folder, with the outcomes that it has.

        Args:
            origin: What the evaluation is begun with, as plain data.

        Raises:
            StoreError: It was begun with something else, is in use, or is broken.
            InputError: It cannot be written.
        """
        if self.folder is None:
            yield
            return
        lock = _locked(self.folder)
        try:
            _require_same(self.folder, json.loads(json.dumps(origin, default=str)))
            self.outcomes = {(one.row, one.arm): one for one in _read(self.folder / _OUTCOMES)}
            yield
        finally:
            lock.release()

    def add(self, outcome: Outcome) -> None:
        """Write an outcome down."""
        self.outcomes[outcome.row, outcome.arm] = outcome
        if self.folder is None:
            return
        line = json.dumps(outcome.to_dict(), ensure_ascii=False, default=str) + "\n"
        with (self.folder / _OUTCOMES).open("ab") as file:
            file.write(line.encode("utf-8", "surrogatepass"))
            file.flush()
            os.fsync(file.fileno())

    def of(self, rows: Iterable[str], arms: Iterable[str]) -> tuple[Outcome, ...]:
        """The outcomes of these rows under these arms that are known."""
        wanted = list(arms)
        keys = ((row, arm) for row in rows for arm in wanted)
        return tuple(self.outcomes[key] for key in keys if key in self.outcomes)


def _locked(folder: Path) -> FileLock:
    """The folder, for this process alone."""
    lock = FileLock(folder / _LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise StoreError(
            f"another process evaluates in {folder}",
            kind="locked",
            expected="one at a time",
            fix="wait for it, or give another folder with --out",
        ) from None
    except OSError as error:
        raise InputError(
            f"the folder {folder} cannot be used: {error}",
            expected="a folder that can be written",
            fix="give another one with --out",
        ) from error
    return lock


def _require_same(folder: Path, origin: dict[str, Any]) -> None:
    """Refuse a folder that was begun with something else; write down what a new one begins with."""
    begun: dict[str, Any] | None = read_json(folder / _BEGUN)
    if begun is None and not (folder / _OUTCOMES).exists():
        write_json(folder / _BEGUN, origin)
        return
    if begun is None:
        raise StoreError(
            f"{folder} holds outcomes, and no {_BEGUN} that says of what",
            kind="broken",
            expected="a folder of an evaluation, or a new one",
            fix="give another folder with --out",
        )
    then, now = begun.get(_ARMS, {}), origin.get(_ARMS, {})
    both = {name: arm for name, arm in now.items() if name in then}
    there = {name: arm for name, arm in then.items() if name in now}
    lines = list(changed({**begun, _ARMS: there}, {**origin, _ARMS: both}, ()))
    if not lines and len(both) < len(now):
        write_json(folder / _BEGUN, {**begun, _ARMS: {**then, **now}})
    if lines:
        more = f"\n  and {len(lines) - MOST_SHOWN} more" if len(lines) > MOST_SHOWN else ""
        shown = "\n  ".join(lines[:MOST_SHOWN])
        raise StoreError(
            f"the evaluation in {folder} was begun with something else:\n  {shown}{more}",
            kind="different",
            expected="the workflow, models, rows and settings that it was begun with; arms may be "
            "added",
            fix="give another folder with --out",
        )


def _read(file: Path) -> Iterator[Outcome]:
    """The whole lines; what an interruption left of the last one is cut off."""
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(file, whole)
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
        try:
            yield Outcome.from_dict(json.loads(line.decode("utf-8", "surrogatepass")))
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{file}:{number}: no outcome: {error}",
                kind="broken",
                expected="one outcome a line, as it was written",
                fix="remove the line: its row then runs again",
            ) from None
