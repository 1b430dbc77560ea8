"""What happens in a run, as it happens: one frozen class per kind of event."""

from dataclasses import dataclass, field
from time import time
from typing import Any

from unspoken.agents.runs.records import Question, ToolReport
from unspoken.agents.runtime.report import EdgeReport, Receiver, RunReport, Sharer, TurnReport
from unspoken.channels.base import Fallback


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a run.

    The items of an agent with ``for_each`` are computed beside each other, so their events mix:
    `item` is the number of the item, from 0, and None for an agent without.

    Attributes:
        run_id: The run's id.
        at: When it happened, in seconds since 1970.
        path: The turns of agents that are workflows themselves in which it happened, outermost
            first: each as ``AGENT.TURN``, with ``.ITEM`` behind it for an item.
    """

    run_id: str = field(default="", kw_only=True, compare=False)
    at: float = field(default=0.0, kw_only=True, compare=False)
    path: tuple[str, ...] = field(default=(), kw_only=True, compare=False)


def stamped(event: Event, run_id: str) -> Event:
    """An event that was just made, with its run and its time."""
    # A token is an event: nobody holds it yet, and a copy of each would cost more than the rest.
    object.__setattr__(event, "run_id", run_id)
    object.__setattr__(event, "at", time())
    return event


def inside(event: Event, place: str) -> Event:
    """An event that was just made, of a workflow that is an agent: its path begins with a turn."""
    object.__setattr__(event, "path", (place, *event.path))
    return event


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """The first agents are about to fire."""

    workflow: str
    agents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TurnStarted(Event):
    """An agent's turn begins; with ``for_each``, one of its `of` items."""

    agent: str
    turn: int
    item: int | None = None
    of: int | None = None


@dataclass(frozen=True, slots=True)
class PrefillProgress(Event):
    """Tokens computed of those that have no state."""

    agent: str
    turn: int
    done: int
    total: int
    item: int | None = None


@dataclass(frozen=True, slots=True)
class TokenWritten(Event):
    """An agent sampled a token; `text` is what may now be shown."""

    agent: str
    turn: int
    text: str
    item: int | None = None


@dataclass(frozen=True, slots=True)
class MessageCarried(Event):
    """A channel put a message into its receiver's context; `edge` says of which item."""

    edge: EdgeReport


@dataclass(frozen=True, slots=True)
class FallbackTaken(Event):
    """An edge goes by text though a cache was asked for."""

    sharer: Sharer
    receiver: Receiver
    reason: str
    fallback: Fallback
    item: int | None = None


@dataclass(frozen=True, slots=True)
class TurnFinished(Event):
    """An agent's turn is over; with ``for_each``, an item of it."""

    agent: str
    turn: int
    text: str
    report: TurnReport
    item: int | None = None


@dataclass(frozen=True, slots=True)
class AgentSkipped(Event):
    """An agent had nothing but skips, or nothing to hand on.

    Attributes:
        agent: Who was skipped.
        reason: Why it had nothing to hand on; empty where it had nothing but skips.
    """

    agent: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LoopEnded(Event):
    """A message was dropped since its receiver had all its turns.

    Attributes:
        sharer: Who sent it.
        receiver: Who could not read it.
        when: The edge's condition, which held; None where it has none.
        turns: How many turns the receiver had.
    """

    sharer: Sharer
    receiver: Receiver
    when: str | None = None
    turns: int = 0


@dataclass(frozen=True, slots=True)
class MessageDropped(Event):
    """A message came after its receiver had begun without it, by its ``join``."""

    sharer: Sharer
    receiver: Receiver


@dataclass(frozen=True, slots=True)
class ToolCalled(Event):
    """An agent calls a tool; `id` names the call in the run."""

    agent: str
    turn: int
    id: str
    tool: str
    arguments: dict[str, Any]
    item: int | None = None


@dataclass(frozen=True, slots=True)
class ToolReturned(Event):
    """A tool has returned, or failed; `call` says what and after how long."""

    agent: str
    turn: int
    call: ToolReport
    item: int | None = None


@dataclass(frozen=True, slots=True)
class TurnRetried(Event):
    """A try of a turn, counted from 1, failed, and another one follows.

    What `TokenWritten` told of it does not count.
    """

    agent: str
    turn: int
    attempt: int
    error: str
    item: int | None = None


@dataclass(frozen=True, slots=True)
class TurnFailed(Event):
    """A turn failed and ends no run, by ``on_error``.

    Attributes:
        agent: Whose turn.
        turn: Its number.
        error: What was wrong, in the last try.
        attempts: How often it was tried.
        default: Whether the agent's default stands in for it; else its readers get skips.
    """

    agent: str
    turn: int
    error: str
    attempts: int
    default: bool


@dataclass(frozen=True, slots=True)
class ItemFailed(Event):
    """An item of ``for_each``, counted from 0, failed and ends no run, by ``on_error``.

    It is left out, or the agent's default stands in for it.
    """

    agent: str
    turn: int
    item: int
    error: str
    default: bool = False


@dataclass(frozen=True, slots=True)
class QuestionAsked(Event):
    """A person is asked, and has not answered yet."""

    question: Question


@dataclass(frozen=True, slots=True)
class RunPaused(Event):
    """The last event of a run that waits for people: nothing else of it can go on."""

    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class RunFinished(Event):
    """The run is over."""

    outputs: dict[str, str]
    report: RunReport
