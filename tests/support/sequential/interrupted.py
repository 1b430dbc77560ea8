"""Workflows of numbered agents, with effects outside, in runs that are interrupted."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.from_thread

from unspoken.agents import RunResult, Workflow
from unspoken.agents.runs import Question, RunStore
from unspoken.agents.runs.answers import answer_questions
from unspoken.agents.tools import tool
from unspoken.channels import RunError, RunWaiting, StoreError

RUN = "r"
ROWS = [0, 1]
"""What agents with ``for_each`` run over."""

Kind = Literal["before", "after", "person", "scope"]
"""A process that dies before or after a change of the store, a person who cancels the run, or a
program that does.
"""


class Killed(BaseException):
    """The process has died: nothing of it may be kept from now on."""


class BrittleStore(RunStore):
    """A store at one of whose changes a run is interrupted.

    Args:
        folder: Where it is.
        kind: How; None for not at all.
        at: At which change, from 0.
    """

    def __init__(self, folder: Path, kind: Kind | None = None, at: int = 0) -> None:
        super().__init__(folder, durable=False)
        self._kind, self._at = kind, at
        self.changes, self.dead = 0, False
        self.scope: anyio.CancelScope | None = None

    def _change(self, change: Callable[[Any], Any], **how: bool) -> Any:
        self.changes += 1
        due = self.changes == self._at + 1
        self.dead = self.dead or (due and self._kind == "before")
        if self.dead:
            raise Killed
        result = super()._change(change, **how)
        if due and self._kind == "after":
            self.dead = True
            raise Killed
        if due and self._kind == "person":
            self.cancel(RUN)
        if due and self._kind == "scope" and self.scope is not None:
            anyio.from_thread.run_sync(self.scope.cancel)
        return result


@dataclass
class World:
    """What agents do outside, and how they come to their words.

    An agent's words are its place and what it read: ``[2.1|0.1,1.1]`` are those of agent 2 in its
    first turn. An item has its number besides.

    Attributes:
        calls: Agents that call a tool in each turn.
        failures: By place, how many tries fail in each process.
        late: Agents that fail after their call and not before it.
        effects: Where a tool had its effect.
        tries: By place, how many tries this process has made.
    """

    calls: frozenset[int]
    failures: Mapping[str, int]
    late: frozenset[int]
    effects: list[str] = field(default_factory=list)
    tries: Counter[str] = field(default_factory=Counter)

    @property
    def act(self) -> Any:
        """The tool."""

        @tool
        async def act(place: str) -> str:
            """Act."""
            self.effects.append(place)
            return "acted"

        return act

    def words(self, agent: str, turn: int, prompt: str) -> str:
        """What an agent writes; an answer of `ScriptedModel`."""
        context, _, asked = prompt.rpartition("Go ")
        number, place = int(agent[1:]), f"{agent[1:]}.{asked.partition('!')[0]}"
        calls = number in self.calls
        acts = calls and "returned" not in asked
        if acts == (calls and number not in self.late):
            self._try(place)
        if acts:
            return f'{{"name": "act", "arguments": {{"place": "{place}"}}}}'
        return f"[{place}|{','.join(sorted(set(read_in(context))))}]"

    def _try(self, place: str) -> None:
        self.tries[place] += 1
        if self.tries[place] <= self.failures.get(place, 0):
            raise ConnectionError("gone")


def read_in(text: str) -> list[str]:
    """Whose words stand in a text."""
    return re.findall(r"\[(\d+\.[\d.]+)\|", text)


def to_end(
    flow: Workflow,
    world: World,
    folder: Path,
    interruptions: list[tuple[Kind, int]],
    answer: Callable[[Question], str] = lambda question: "yes",
) -> RunResult:
    """Run a workflow that is interrupted, and have it go on until it ends.

    Whatever was handed over before an interruption must stay.
    """
    left, before = list(interruptions), list[tuple[str, int, str]]()
    while True:
        store = BrittleStore(folder, *(left.pop(0) if left else ()))
        world.tries.clear()
        try:
            result = anyio.run(_attempt, flow, store)
            if result is not None:
                return result
        except Killed:
            pass
        except RunWaiting as waiting:
            _answer(folder, {one.id: answer(one) for one in waiting.questions})
        except (RunError, StoreError) as error:
            if "was cancelled" not in str(error):
                raise
        finally:
            store.close()
        with_words = RunStore(folder, durable=False)
        words = with_words.words(RUN) if with_words.file.exists() else []
        with_words.close()
        assert words[: len(before)] == before
        before = words


def _answer(folder: Path, said: dict[str, str]) -> None:
    """Answer what is asked, unless a person has cancelled the run meanwhile: it asks again."""
    store = RunStore(folder, durable=False)
    if store.get(RUN).status != "cancelled":
        answer_questions(store, RUN, said)
    store.close()


async def _attempt(flow: Workflow, store: BrittleStore) -> RunResult | None:
    """One process of a run; None where the program cancels it."""
    with anyio.CancelScope() as store.scope:
        # A person's cancel is taken back by the next one. `anyway` for a run that was not cancelled
        # has it go on as another run, which forgets the order of its turns.
        run = store.find(RUN)
        revive = run is not None and run.status == "cancelled"
        return await flow.arun(run_id=RUN, store=store, anyway=revive, rows=ROWS)
    return None
