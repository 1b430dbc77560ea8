"""The calls of tools in one run: each is noted before it is made, and made once."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from unspoken.agents.runs.offload import elsewhere
from unspoken.agents.runs.records import CallRecord
from unspoken.agents.runs.store import RunStore

Place = tuple[str, int, int]
"""Agent, turn and item; the item is -1 without ``for_each``."""


class Calls:
    """What was called in a run, in this process or before.

    A turn that is taken again, after a failure or a death, asks for its calls in its order. A call
    that it asked for before is known by its tool and arguments; any other is a new one.

    Args:
        store: Where they are kept.
        run: The run's id.
    """

    def __init__(self, store: RunStore, run: str) -> None:
        self._store, self._run = store, run
        self._made: dict[Place, dict[int, CallRecord]] = {}
        for call in store.calls(run):
            self._made.setdefault((call.agent, call.turn, call.item), {})[call.number] = call
        self._read: dict[Place, set[int]] = {}

    @property
    def unread(self) -> tuple[CallRecord, ...]:
        """Calls that were made, or may have been, and whose result no turn has read."""
        return tuple(
            call
            for place, calls in self._made.items()
            for call in calls.values()
            if call.result is None or call.number not in self._read.get(place, ())
        )

    def begin(self, place: Place) -> None:
        """Note that a turn is tried, for the first time or again: it reads its calls anew."""
        self._read.pop(place, None)

    async def result(
        self,
        place: Place,
        tool: str,
        arguments: str,
        make: Callable[[], Awaitable[Any]],
        *,
        idempotent: bool,
    ) -> str | None:
        """The result of a call as JSON text, made now or before; None where nobody knows it.

        Args:
            place: The turn.
            tool: The tool.
            arguments: What it is called with, as JSON text.
            make: Calls it. What goes wrong in the tool is a result too; an exception leaves open
                whether the call took effect.
            idempotent: Whether it does no harm to call it again.
        """
        made = self._made.setdefault(place, {})
        read = self._read.setdefault(place, set())
        asked = (tool, arguments)
        known = [one for one in made.values() if (one.tool, one.arguments) == asked]
        call = next((one for one in known if one.number not in read), None)
        if call is None:
            agent, turn, item = place
            call = CallRecord(
                agent=agent,
                turn=turn,
                item=item,
                number=max(made, default=0) + 1,  # never that of a call which was made
                tool=tool,
                arguments=arguments,
                result=None,
            )
            await elsewhere(partial(self._store.begin_call, self._run, call))
            made[call.number] = call
        elif call.result is not None or not idempotent:
            read.add(call.number)
            return call.result
        read.add(call.number)
        text = json.dumps(await make(), ensure_ascii=False, default=str)
        made[call.number] = ended = replace(call, result=text)
        await elsewhere(partial(self._store.end_call, self._run, ended))
        return text
