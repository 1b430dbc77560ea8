"""What is kept of one run while it goes on, and what it finds when it goes on again."""

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import anyio
import structlog

from unspoken.agents.engines.base import Engine, StateRef, TurnOutcome
from unspoken.agents.runs.calls import Calls
from unspoken.agents.runs.changes import root_of
from unspoken.agents.runs.offload import elsewhere
from unspoken.agents.runs.packets import read_state, state_file, write_state
from unspoken.agents.runs.records import CallRecord, Question, TurnRecord
from unspoken.agents.runs.store import Computed, Over, RunStore
from unspoken.agents.runs.told import Told
from unspoken.agents.tools.functions import Tool
from unspoken.agents.tools.toolbox import Call, Called
from unspoken.channels.errors import PacketError, RunError, StateError, StoreError

log = structlog.wrap_logger(logging.getLogger("unspoken.runs"))

UNKNOWN = "It is not known whether this call took effect: the run was interrupted during it."
"""What a call gives that may have happened."""


@dataclass(kw_only=True, eq=False)
class _Pending:
    """What waits to be written down, of a run and of all that run inside of it.

    An event is never written before the turn that it tells of. Turns are by run, agent and turn;
    `lock` is held while those in `writing` are written, and after a `fault` nothing is.
    """

    told: Told
    held: dict[tuple[str, str, int], list[Computed]] = field(default_factory=dict)
    writing: dict[tuple[str, str, int], list[Computed]] = field(default_factory=dict)
    lock: anyio.Lock = field(default_factory=lambda: anyio.Lock(fast_acquire=True))
    fault: Exception | None = None


class Journal:
    """The book of one run. Its coroutines are for the event loop of the run.

    Args:
        store: Where it is kept.
        run: The run's id, or the key of a sub-workflow in it.
        states: Whether states are kept as packets, so that they are read and not computed again
            when the run goes on.
        outer: The book of the run around it, where this is a sub-workflow.

    Attributes:
        root: The run's id.
        told: The events of the whole run.
        restored: How many computed turns were had from the store.
    """

    def __init__(
        self, store: RunStore, run: str, *, states: bool = False, outer: "Journal | None" = None
    ) -> None:
        self.store, self.run = store, run
        self.root = root_of(run)
        pending: _Pending | None = None if outer is None else outer._pending
        self._pending: _Pending = pending or _Pending(told=Told(store.told(run)))
        self.told = self._pending.told
        self.restored = 0
        self._states = states
        self._turns: dict[tuple[str, int, int], dict[str, TurnRecord]] = {}
        self._taken: set[tuple[tuple[str, int, int], str]] = set()
        self._tried: dict[tuple[str, int, int], set[str]] = {}
        for record in store.turns(run):
            place = (record.agent, record.turn, record.item)
            self._turns.setdefault(place, {})[record.digest] = record
        self._there = {place: set(kept) for place, kept in self._turns.items()}
        self._places = {place: number for number, place in enumerate(store.order(run))}
        self._calls = Calls(store, run)
        self._before = len(self._places)
        self._next = 0
        self._moved = anyio.Event()
        self._over: list[Over] = []
        self._goes_on = True

    @property
    def unknown(self) -> tuple[CallRecord, ...]:
        """Calls of tools that happened, or may have, and whose result no turn has read."""
        return self._calls.unread

    def take(self, agent: str, turn: int, item: int | None, digest: str) -> TurnRecord | None:
        """A turn that was computed before; again where it is tried again.

        Raises:
            RunError: The turn had failed, and its agent said what else to do.
            StoreError: The turn had ended and read something else.
        """
        place = agent, turn, -1 if item is None else item
        kept = self._turns.get(place, {})
        record = kept.get(digest)
        if record is not None:
            self.restored += (place, digest) not in self._taken
            self._taken.add((place, digest))
            self._tried.setdefault(place, set()).add(digest)
        elif (agent, turn) in self._places:
            if all((place, other) in self._taken for other in kept):
                raise RunError(f"turn {turn} of {agent!r} had failed when run {self.run} ran it")
            raise StoreError(
                f"turn {turn} of {agent!r} reads something else than when run {self.run} ran it",
                kind="different",
                expected="the same context and settings",
                fix="run it again from there with --anyway (in Python, anyway=True)",
            )
        return record

    def begin(self, agent: str, turn: int, item: int | None) -> None:
        """Note that a turn is tried, for the first time or again."""
        place = agent, turn, -1 if item is None else item
        self._tried.pop(place, None)
        self._calls.begin(place)

    async def add(self, record: TurnRecord) -> None:
        """Keep a computed turn, or a pass of one; what other tries have left goes.

        Of a turn that failed in the end, the passes of its last try are thus what is there.

        It is written down with the end of its turn, which mostly follows at once, with the first
        event that is written after it, or before anything else happens that takes time or that
        others see. An item is written down now, for the others may take long, and so is what has a
        state, which a cleaner would sweep away. Where the run ends early, `flush` writes it down.
        """
        place = record.agent, record.turn, record.item
        tried = self._tried.setdefault(place, set())
        tried.add(record.digest)
        there = self._there.setdefault(place, set())
        gone = there - tried
        self._there[place] = (there - gone) | {record.digest}
        key = self.run, record.agent, record.turn
        self._pending.held.setdefault(key, []).append((self.run, record, gone))
        if record.state or record.item >= 0:
            await self._write_held(record.agent, record.turn)

    async def _write_held(self, agent: str, turn: int) -> None:
        """Have what waits of a turn written down; nobody waits for the turns of others."""
        key = self.run, agent, turn
        if key in self._pending.held or key in self._pending.writing:
            await self._write()

    async def flush(self, *, quiet: bool = False) -> None:
        """Write down what is left when a run ends, whatever its end: a cancel waits for it.

        Args:
            quiet: Whether a store that cannot be written is only logged: the run has failed.

        Raises:
            StoreError: The disk is full.
        """
        if self._pending.fault is not None:
            return
        with anyio.CancelScope(shield=True):
            try:
                await self._write()
            except StoreError as error:
                if not quiet:
                    raise
                log.warning("turns are not kept", run=self.run, reason=error.found)

    async def opened_inside(self, scope: str) -> "Journal":
        """The book of a sub-workflow in this run.

        Args:
            scope: The turn that runs it, as ``AGENT.TURN`` with ``.ITEM`` behind it for an item.
        """
        key = f"{self.run}/{scope}"
        made = partial(Journal, self.store, key, states=self._states, outer=self)
        return await elsewhere(made)

    async def handed_over(self, agent: str, turn: int, text: str) -> None:
        """Note that an agent's turn is over, before anybody reads it.

        Where the run goes on, turns are handed over in the order in which they were.

        Raises:
            RunError: A person has cancelled the run.
        """
        place = self._places.pop((agent, turn), None)
        if self._next < (self._before if place is None else place):
            await self._write_held(agent, turn)
        while self._next < (self._before if place is None else place):
            await self._moved.wait()
        if place is not None:
            self._step()
            return
        self._over.append((self._next, agent, turn, text))
        self._step()
        await self._write()
        if not self._goes_on:
            raise RunError(
                f"run {self.root} was cancelled",
                fix="begin another run, or go on with it anyway: --anyway",
            )

    async def _write(self) -> None:
        """Write down what waits: turns that are over or computed, and events, in one transaction.

        Nothing follows one that failed: the places of a run's turns have no gap.
        """
        pending = self._pending
        async with pending.lock:
            if pending.fault is not None:
                raise _again(pending.fault) from pending.fault
            if not self._over and not pending.held:  # somebody else has written it down
                return
            over, self._over = self._over, []
            pending.writing, pending.held = pending.held, {}
            told = self.told.take()
            held = [one for records in pending.writing.values() for one in records]
            try:
                work = partial(self.store.hand_over, self.run, over, told, held)
                self._goes_on = await elsewhere(work)
            except Exception as error:
                pending.fault = error
                raise
            except BaseException:  # asyncio's own cancel: whether it was written is not known
                self._over = over + self._over
                for key, records in pending.writing.items():
                    pending.held[key] = records + pending.held.get(key, [])
                self.told.put_back(told)
                raise
            finally:
                pending.writing = {}

    def _step(self) -> None:
        self._next += 1
        self._moved.set()
        self._moved = anyio.Event()

    async def answer_to(self, question: Question) -> str | None:
        """What a person has answered to just this question; None where nobody has."""
        if self._pending.held or self._pending.writing:  # those of the runs around it too
            await self._write()
        known = await elsewhere(partial(self.store.question, self.root, question.id))
        same = known is not None and (known.kind, known.text) == (question.kind, question.text)
        return known.answer if known is not None and same else None

    async def note_question(self, question: Question) -> str | None:
        """Keep a question, or the answer to it; the answer that counts, which is the first one."""
        return await elsewhere(partial(self.store.note_question, self.root, question))

    async def call(
        self,
        place: tuple[str, int, int | None],
        tool: str,
        arguments: str,
        make: Callable[[], Awaitable[Any]],
        *,
        idempotent: bool = False,
    ) -> Any:
        """Call a tool, unless it was called before the run was interrupted.

        Args:
            place: The agent, its turn, and the item or None.
            tool: The tool.
            arguments: What it is called with, as JSON text.
            make: Calls it; what it gives must be plain data. What goes wrong in the tool is a
                result too.
            idempotent: Whether it does no harm to call it again.

        Returns:
            What it gave, now or then, as it is kept; `UNKNOWN` where it was begun then, and nobody
            knows.
        """
        agent, turn, item = place
        await self._write_held(agent, turn)
        text = await self._calls.result(
            (agent, turn, -1 if item is None else item),
            tool,
            arguments,
            make,
            idempotent=idempotent,
        )
        if text is None:
            log.warning("a call may have happened", run=self.run, agent=agent, tool=tool)
        return UNKNOWN if text is None else json.loads(text)

    async def around(self, call: Call, tool: Tool, make: Callable[[], Awaitable[Called]]) -> Called:
        """Stands around every call of the run's tools; see `unspoken.agents.tools.toolbox.Book`."""

        async def plain() -> dict[str, Any]:
            return asdict(await make())

        said = await self.call(
            (call.agent, call.turn, call.item),
            tool.name,
            json.dumps(dict(call.arguments), ensure_ascii=False, sort_keys=True, default=str),
            plain,
            idempotent=tool.idempotent,
        )
        if said == UNKNOWN:
            return Called(result=UNKNOWN, failed=True, seconds=0.0, unknown=True)
        names = ("result", "failed", "seconds", "unknown")
        return Called(**{name: said[name] for name in names if name in said})

    async def keep_state(self, engine: Engine, agent: str, outcome: TurnOutcome) -> str:
        """Keep the state of a turn, where states are kept: the digest of its packet, or nothing.

        Raises:
            StoreError: The disk is full.
        """
        if not self._states or outcome.state is None:
            return ""
        folder = self.store.states
        try:
            work = partial(write_state, folder, engine, agent, outcome.state, outcome.ids)
            return await elsewhere(work)
        except StateError as error:  # a state that no packet takes is computed again
            log.info("a state is not kept", run=self.run, agent=agent, reason=error.found)
            return ""

    async def keep_state_again(
        self, engine: Engine, agent: str, outcome: TurnOutcome, digest: str
    ) -> None:
        """Keep a state again that was swept away before its turn was kept.

        Who cleans the store removes states that no turn has, and a turn is kept after its state.
        """
        if digest and not state_file(self.store.states, digest).exists():
            await self.keep_state(engine, agent, outcome)

    async def stored_state(
        self, engine: Engine, digest: str, ids: tuple[int, ...]
    ) -> StateRef | None:
        """The state of a turn from its packet; None where it has to be computed."""
        if not digest:
            return None
        try:
            return await read_state(self.store.states, engine, digest, ids)
        except (StoreError, PacketError, OSError) as error:
            found = getattr(error, "found", str(error))
            log.warning("a state is computed again", run=self.run, reason=found)
            return None


def _again(fault: Exception) -> StoreError:
    """The error of whoever comes after a fault: each task raises one of its own."""
    if isinstance(fault, StoreError):
        return StoreError(fault.found, kind=fault.kind, expected=fault.expected, fix=fault.fix)
    return StoreError(f"the run cannot be kept: {type(fault).__name__}: {fault}", kind="broken")
