"""An agent in one run: what it has written, and the messages that it holds with their states on the
shelf.
"""

from dataclasses import dataclass, field, replace

from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import Context
from unspoken.agents.runtime.dataflow import Firing
from unspoken.agents.runtime.report import TurnReport
from unspoken.agents.runtime.states import StateRef, StateStore
from unspoken.agents.spec.spec import AgentSpec
from unspoken.channels.kv.compressed import CompressedState
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message

__all__ = ["AgentRun", "InFlight", "compressed", "drop", "hold", "release", "with_state"]


@dataclass(frozen=True, slots=True)
class InFlight:
    """A message as the scheduler holds it: its state on the shelf."""

    message: Message
    handle: StateRef | None


@dataclass(slots=True)
class AgentRun:
    """What one run knows of an agent."""

    name: str
    spec: AgentSpec
    model: LocalModel
    context: Context | None = None
    state: KVState | None = None
    texts: list[str] = field(default_factory=list)
    items: tuple[str, ...] = ()
    skipped: bool = False
    turns: list[TurnReport] = field(default_factory=list)
    held: dict[int, InFlight] = field(default_factory=dict)


def hold(shelf: StateStore, agent: AgentRun, firing: Firing[InFlight]) -> None:
    """Remember which states this agent has yet to read, and let go of those that newer ones
    replace.
    """
    for number, parcel in firing.inbox.items():
        known = agent.held.get(number)
        if number in firing.fresh:
            if known is not None:
                drop(shelf, known)
            agent.held[number] = parcel


def release(shelf: StateStore, agent: AgentRun, ends: bool) -> None:
    """Free the states this agent has read for the last time."""
    if not ends and (agent.spec.memory == "turn" or agent.spec.for_each is not None):
        return
    for number, parcel in list(agent.held.items()):
        drop(shelf, parcel)
        agent.held[number] = replace(parcel, handle=None)


def drop(shelf: StateStore, parcel: InFlight) -> None:
    """Free the state of a message that nobody reads."""
    if parcel.handle is not None:
        shelf.release(parcel.handle)


def with_state(shelf: StateStore, parcel: InFlight) -> Message:
    """A message with its state, where it has one that is kept as it is."""
    state = None if parcel.handle is None else shelf.get(parcel.handle)
    return replace(parcel.message, state=state) if isinstance(state, KVState) else parcel.message


def compressed(shelf: StateStore, parcel: InFlight) -> CompressedState | None:
    """The state of a message, where it is kept in fewer bytes."""
    state = None if parcel.handle is None else shelf.get(parcel.handle)
    return state if isinstance(state, CompressedState) else None
