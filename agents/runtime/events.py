"""What happens in a run, as it happens: one frozen class per kind of event."""

from dataclasses import asdict, dataclass
from typing import Any

from unspoken.agents.runs.records import Question
from unspoken.agents.runtime.report import EdgeReport, RunReport, TurnReport
from unspoken.channels.base import Fallback


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a run.

    The items of an agent with ``for_each`` are computed beside each other, so their events mix:
    `item` is the number of the item, from 0, and None for an agent without.
    """


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """The first agents are about to fire."""

    run_id: str
    workflow: str
    agents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TurnStarted(Event):
    """An agent's turn begins."""

    agent: str
    turn: int


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

    sharer: str
    receiver: str
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
    """An agent had nothing but skips."""

    agent: str


@dataclass(frozen=True, slots=True)
class LoopEnded(Event):
    """A message was dropped since its receiver had all its turns.

    Attributes:
        sharer: Who sent it.
        receiver: Who could not read it.
        when: The edge's condition, which held; None where it has none.
        turns: How many turns the receiver had.
    """

    sharer: str
    receiver: str
    when: str | None = None
    turns: int = 0


@dataclass(frozen=True, slots=True)
class MessageDropped(Event):
    """A message came after its receiver had begun without it, by its ``join``."""

    sharer: str
    receiver: str


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

    run_id: str
    question: Question


@dataclass(frozen=True, slots=True)
class RunPaused(Event):
    """The last event of a run that waits for people: nothing else of it can go on."""

    run_id: str
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class RunFinished(Event):
    """The run is over."""

    outputs: dict[str, str]
    report: RunReport


def to_dict(event: Event) -> dict[str, Any]:
    """An event as plain data, its kind under ``event`` and an edge's ends under ``from`` and
    ``to``.
    """
    data = event.edge.to_dict() if isinstance(event, MessageCarried) else asdict(event)
    ends = {"sharer": "from", "receiver": "to"}
    return {
        "event": type(event).__name__,
        **{ends.get(key, key): value for key, value in data.items()},
    }
