"""A run that is kept, from its beginning or its return to its end."""

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from unspoken.agents.runs.journal import Journal
from unspoken.agents.runs.origin import require_same
from unspoken.agents.runs.records import Origin, Status, StoredRun
from unspoken.agents.runs.store import RunStore
from unspoken.channels.errors import InputError, RunWaiting, StoreError, UnspokenError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How a run is kept.

    Attributes:
        run_id: Its id; the run of this id goes on where there is one. None for a new one.
        store: Where it is kept; None for the user's own store.
        states: Whether states are kept too, so that none is computed again.
        anyway: Whether it goes on though it was begun with something else.
        must_exist: Whether it must have begun before.
    """

    run_id: str | None = None
    store: RunStore | str | Path | None = None
    states: bool = False
    anyway: bool = False
    must_exist: bool = False

    @property
    def asked(self) -> bool:
        """Whether the run is to be kept."""
        return self.run_id is not None or self.store is not None or self.states


NOT_KEPT = Keeping()


class KeptRun:
    """One run in a store.

    Args:
        keeping: How it is kept.

    Attributes:
        id: Its id.
        stored: The run as it was; None for a new one.
        outputs: The workflow's outputs, once there are any.

    Raises:
        InputError: An id that is none.
        StoreError: A store that cannot be read, or no run where there must be one.
    """

    def __init__(self, keeping: Keeping) -> None:
        self.id = uuid.uuid4().hex[:12] if keeping.run_id is None else keeping.run_id
        if not _ID.fullmatch(str(self.id)):
            raise InputError(
                f"{str(self.id)[:60]!r} cannot be the id of a run",
                expected="up to 100 letters, digits, dots, dashes and underscores",
            )
        where = keeping.store
        self._own = not isinstance(where, RunStore)
        self.store = where if isinstance(where, RunStore) else RunStore(where)
        self._keeping, self._lock = keeping, self.store.lock(self.id)
        find = self.store.get if keeping.must_exist else self.store.find
        self.stored: StoredRun | None = find(self.id)
        self.outputs: dict[str, str] | None = None
        self._began = False
        self._journal: Journal | None = None

    def inputs(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """The run's inputs: those given, or of a run that goes on those it was begun with."""
        return self.stored.origin.inputs if self.stored is not None and not given else given

    def open(self, origin: Origin) -> Journal:
        """Begin the run, or go on with it.

        Raises:
            StoreError: It goes on elsewhere, was begun with something else, or was cancelled.
        """
        origin = _plain(origin)
        self._lock.acquire()
        try:
            stored = self.store.find(self.id)  # another process may have been quicker
            if stored is None:
                self.store.begin(self.id, origin)
            else:
                anyway = self._keeping.anyway
                other = require_same(stored, origin, anyway=anyway)
                # Asked for though nothing differs: a turn read something else, and may run again.
                again = anyway and stored.status != "cancelled"
                becomes = origin if other or again else None
                if not self.store.go_on(self.id, revive=anyway, origin=becomes):
                    raise StoreError(
                        f"run {self.id} was cancelled",
                        kind="over",
                        expected="a run that may go on",
                        fix="begin another run, or go on with --anyway (in Python, anyway=True)",
                    )
            self._began = True
            self._journal = Journal(self.store, self.id, states=self._keeping.states)
            return self._journal
        except BaseException:
            self._lock.release()
            raise

    def end(self, error: BaseException | None) -> None:
        """Say how it ended, and let others go on with it."""
        try:
            if self._began and (error is None or isinstance(error, Exception)):
                status, found = _status(error)
                self.store.mark(self.id, status, self.outputs, found)
                told = [] if self._journal is None else self._journal.told.take()
                if told:
                    self.store.add_told(self.id, told)
        except StoreError:
            if error is None:
                raise
        finally:
            self._lock.release()
            if self._own:
                self.store.close()


def _status(error: BaseException | None) -> tuple[Status, str]:
    match error:
        case None:
            return "finished", ""
        case RunWaiting():
            return "paused", ""
        case UnspokenError():
            return "failed", error.found
        case _:
            return "failed", f"{type(error).__name__}: {error}"


def _plain(origin: Origin) -> Origin:
    """What a run is begun with, as it comes back from the store.

    Raises:
        InputError: Inputs that are no plain data.
    """
    return replace(origin, **as_stored(asdict(origin)))


def as_stored(data: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data as it comes back from the store, so that a run reads the same each time.

    Raises:
        InputError: It is no plain data.
    """
    try:
        read: dict[str, Any] = json.loads(json.dumps(dict(data), ensure_ascii=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the inputs of a run that is kept cannot be written down: {error}",
            expected="texts, numbers, and lists and mappings of them",
        ) from error
    return read
