"""An agent in one run: what it has written, and the messages that it holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from unspoken.agents.engines.base import Engine, History, StateRef
from unspoken.agents.models.base import AgentModel
from unspoken.agents.prompts.context import Context
from unspoken.agents.runtime.dataflow import Firing
from unspoken.agents.runtime.report import TurnReport
from unspoken.agents.sessions.records import Earlier
from unspoken.agents.spec.spec import AgentSpec, WorkflowSpec
from unspoken.channels.message import Message


@dataclass(frozen=True, slots=True)
class InFlight:
    """A message on an edge.

    Attributes:
        message: Its words and ids.
        state: The ticket for its state.
        told: What templates may read of its sharer besides the words: ``data``, and ``items``.
    """

    message: Message
    state: StateRef | None
    told: Mapping[str, object] = field(default_factory=dict)


@dataclass(slots=True)
class AgentRun:
    """What one run knows of an agent.

    Attributes:
        name: Its name.
        spec: What the workflow says of it.
        model: What turns its words into ids.
        engine: What computes its turns.
        context: Its context, where it remembers (``memory: run``) and has had a turn.
        state: The ticket for the state of its last turn.
        ids: What that state is of: its context, with thoughts that the context may lack.
        texts: What it wrote, turn by turn.
        items: What it wrote for each item of ``for_each``, in its last turn; empty for those that
            failed or have not ended.
        skipped: Whether it was skipped in its last round.
        turns: A report of every turn.
        held: The messages it may yet read, by edge.
    """

    name: str
    spec: AgentSpec
    model: AgentModel
    engine: Engine
    context: Context | None = None
    state: StateRef | None = None
    ids: tuple[int, ...] = ()
    texts: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    skipped: bool = False
    turns: list[TurnReport] = field(default_factory=list)
    held: dict[int, InFlight] = field(default_factory=dict)

    @property
    def history(self) -> History | None:
        """Its earlier turns, where it remembers them with their state."""
        if self.context is None or self.state is None:
            return None
        return History(self.ids, self.state)

    def remembers(self, *, ends: bool) -> bool:
        """Whether it goes on from a turn: in this run, or in the next one of a session.

        Args:
            ends: Whether the turn is its last one of the run.
        """
        if self.spec.for_each is not None:
            return False
        return self.spec.memory == "session" or (self.spec.memory == "run" and not ends)

    def hold(self, firing: Firing[InFlight]) -> None:
        """Take the messages of a firing, and let go of those that it does not have any more."""
        for number in self.held.keys() - firing.inbox.keys():
            self.drop(self.held.pop(number))
        for number, message in firing.inbox.items():
            if number in firing.fresh:
                self.drop(self.held.get(number))
                self.held[number] = message

    def release(self, *, ends: bool) -> None:
        """Let go of the states of messages that were read for the last time."""
        again = self.spec.memory == "turn" or self.spec.for_each is not None
        if again and not ends:
            return
        for number, message in list(self.held.items()):
            self.drop(message)
            self.held[number] = InFlight(message.message, None, message.told)

    def remember(
        self, context: Context | None, state: StateRef | None, ids: tuple[int, ...] = ()
    ) -> None:
        """Go on from this context in the next turn, in place of the one before.

        Args:
            context: The context; None to begin anew.
            state: The ticket for the last turn's state.
            ids: What the state is of.
        """
        if self.state is not None and self.state != state:
            self.engine.release(self.state)
        self.context, self.state, self.ids = context, state, ids

    def drop(self, message: InFlight | None) -> None:
        """Let go of the state of a message that this agent will not read."""
        if message is not None and message.state is not None:
            self.engine.release(message.state)


def agents_of(
    spec: WorkflowSpec,
    models: Mapping[str, AgentModel],
    engines: Mapping[str, Engine],
    earlier: Mapping[str, Earlier],
) -> dict[str, AgentRun]:
    """The agents of a run, each with what it goes on from."""
    agents = {
        name: AgentRun(name, agent, models[name], engines[name])
        for name, agent in spec.agents.items()
    }
    for name, past in earlier.items():
        agents[name].remember(past.context, past.state, past.ids)
    return agents
