"""What a finished turn sends on its agent's out-edges, and what their readers need of it."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

from unspoken.agents.agent_run import AgentRun, Parcel
from unspoken.agents.conversation import publish
from unspoken.agents.engines.local import worker_for
from unspoken.agents.memory import Shelf
from unspoken.agents.planner import Plan
from unspoken.agents.spec import WorkflowSpec
from unspoken.agents.templates import evaluate
from unspoken.agents.turn import TurnOutcome
from unspoken.channels.codec import Codec
from unspoken.channels.message import Message
from unspoken.channels.packed import PackedState, pack
from unspoken.channels.state import KVState

__all__ = ["Sender"]


@dataclass(frozen=True, slots=True)
class Sender:
    """The out-edges of one run.

    Attributes:
        spec: The workflow.
        plan: Its plan.
        inputs: Checked input values.
        agents: The run's agents, by name.
        shelf: Where states are kept for their readers.
    """

    spec: WorkflowSpec
    plan: Plan
    inputs: Mapping[str, object]
    agents: Mapping[str, AgentRun]
    shelf: Shelf

    def feeds_cache(self, agent: AgentRun) -> bool:
        """Whether a reader of this agent takes over its state."""
        return agent.spec.for_each is None and any(
            self.plan.channels[number].carries_state
            for number, edge in enumerate(self.spec.edges)
            if edge.from_ == agent.name
        )

    def captures(self, agent: AgentRun) -> tuple[int, ...]:
        """Layers whose inputs this agent's readers need."""
        wanted = {
            layer
            for number, edge in enumerate(self.spec.edges)
            if edge.from_ == agent.name
            for layer in self.plan.channels[number].captures
        }
        return tuple(sorted(wanted))

    async def send(
        self, agent: AgentRun, results: list[tuple[TurnOutcome, int]]
    ) -> dict[int, Parcel | None]:
        """Publish a turn on every out-edge whose condition holds."""
        state = results[0][0].state if results else None
        return await self.publish(
            agent, lambda number: self._message(agent, number, results), state
        )

    async def publish(
        self, agent: AgentRun, make: Callable[[int], Message], state: KVState | None
    ) -> dict[int, Parcel | None]:
        """Send a message made for each out-edge whose condition holds, with its part of the state."""
        sent: dict[int, Parcel | None] = {}
        context = {"inputs": dict(self.inputs), agent.name: {"text": agent.texts[-1]}}
        for number, edge in enumerate(self.spec.edges):
            if edge.from_ != agent.name:
                continue
            if edge.when is not None and not evaluate(edge.when, context):
                sent[number] = None
                continue
            message = make(number)
            handle = None
            if state is not None and self.plan.channels[number].carries_state:
                kept = await self._kept(state.slice(0, len(message.context)), edge.codec)
                handle = self.shelf.put(kept, readers=1)
            sent[number] = Parcel(message, handle)
        return sent

    async def _kept(self, state: KVState, codec: Codec) -> KVState | PackedState:
        """A state as an edge keeps it; packing is work for its device."""
        if codec == "raw":
            return state
        return await worker_for(state.device).run(_packing(state, codec), lambda step: None)

    def _message(
        self, agent: AgentRun, number: int, results: list[tuple[TurnOutcome, int]]
    ) -> Message:
        edge = self.spec.edges[number]
        share = self.spec.share_of(edge)
        theirs, carries = self.agents[edge.to].model, self.plan.channels[number].carries_state
        codec = agent.model.codec
        aligned = carries and theirs.identity.tokenizer != agent.model.identity.tokenizer
        parts = [
            publish(
                agent.name,
                share,
                outcome.context,
                prompt_at,
                agent.model.identity,
                codec if aligned else None,
            )
            for outcome, prompt_at in results
        ]
        if len(parts) == 1:
            return parts[0]
        segments = tuple(segment for part in parts for segment in part.segments)
        return Message(agent.name, segments, share == "context", (), agent.model.identity)


def _packing(state: KVState, codec: Codec) -> Generator[None, None, PackedState]:
    yield  # the worker turns gradients off around every step
    return pack(state, codec)
