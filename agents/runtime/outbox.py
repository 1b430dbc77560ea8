"""What a finished turn sends on its agent's out-edges, and what their readers need of it."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace

from unspoken.agents.engines.local import worker_for
from unspoken.agents.engines.turn import TurnOutcome
from unspoken.agents.planning.plan import Plan
from unspoken.agents.prompts.context import Context
from unspoken.agents.prompts.jinja import evaluate
from unspoken.agents.prompts.tokenizer import TextTokenizer
from unspoken.agents.runtime.agent_run import AgentRun, InFlight
from unspoken.agents.runtime.states import StateStore
from unspoken.agents.spec.spec import Share, WorkflowSpec
from unspoken.channels.kv.codec import Codec
from unspoken.channels.kv.compressed import CompressedState, compress
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message, Segment

__all__ = [
    "Sender",
    "publish",
]


def publish(
    sharer: str,
    share: Share,
    context: Context,
    prompt_at: int,
    identity: ModelIdentity,
    codec: TextTokenizer | None = None,
) -> Message:
    """The message of a finished turn, without its state.

    Args:
        sharer: Name of the agent.
        share: What to publish.
        context: The agent's context, its last turn closed.
        prompt_at: Index of the prompt's segment in the context.
        identity: Identity of the agent's model.
        codec: Its tokenizer, where the message needs its tokens' character ends; composed turns
            mostly have them.
    """
    segments = context.segments
    match share:
        case "output":
            chosen: tuple[Segment, ...] = (segments[-1],)
        case "prompt":
            chosen = (segments[prompt_at],)
        case "context":
            chosen = tuple(segment for segment in segments if segment.role != "system")
    if codec is not None:
        chosen = tuple(_with_ends(segment, codec) for segment in chosen)
    end = chosen[-1].position + len(chosen[-1].ids)
    return Message(sharer, chosen, share == "context", context.ids[:end], identity)


def _with_ends(segment: Segment, codec: TextTokenizer) -> Segment:
    if len(segment.ends) == len(segment.words):
        return segment
    return replace(segment, ends=codec.ends(segment.words, segment.text))


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
    shelf: StateStore

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
    ) -> dict[int, InFlight | None]:
        """Publish a turn on every out-edge whose condition holds."""
        state = results[0][0].state if results else None
        return await self.publish(
            agent, lambda number: self._message(agent, number, results), state
        )

    async def publish(
        self, agent: AgentRun, make: Callable[[int], Message], state: KVState | None
    ) -> dict[int, InFlight | None]:
        """Send a message made for each out-edge whose condition holds, with its part of the state."""
        sent: dict[int, InFlight | None] = {}
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
            sent[number] = InFlight(message, handle)
        return sent

    async def _kept(self, state: KVState, codec: Codec) -> KVState | CompressedState:
        """A state as an edge keeps it; packing is work for its device."""
        if codec == "raw":
            return state
        return await worker_for(state.device).run(_compressing(state, codec), lambda step: None)

    def _message(
        self, agent: AgentRun, number: int, results: list[tuple[TurnOutcome, int]]
    ) -> Message:
        edge = self.spec.edges[number]
        share = self.spec.share_of(edge)
        theirs, carries = self.agents[edge.to].model, self.plan.channels[number].carries_state
        codec = agent.model.text
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


def _compressing(state: KVState, codec: Codec) -> Generator[None, None, CompressedState]:
    yield  # the worker turns gradients off around every step
    return compress(state, codec)
