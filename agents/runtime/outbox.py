"""What a finished turn sends on its agent's out-edges, and what their readers need of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from unspoken.agents.engines.base import Keep, StateRef
from unspoken.agents.planning.plan import Plan
from unspoken.agents.prompts.context import ChatTurn, Context
from unspoken.agents.prompts.jinja import evaluate
from unspoken.agents.prompts.tokenizer import TextTokenizer
from unspoken.agents.runtime.agent_run import AgentRun, InFlight
from unspoken.agents.runtime.answers import require_whole, told_of
from unspoken.agents.runtime.reply import TurnReply
from unspoken.agents.spec.spec import Share, WorkflowSpec
from unspoken.channels.errors import RunError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.message import Message, Segment


def publish(
    sharer: str,
    share: Share,
    context: Context,
    prompt_at: int,
    identity: ModelIdentity,
    text: TextTokenizer | None = None,
    answer: Segment | None = None,
) -> Message:
    """The message of a finished turn, without its state.

    Args:
        sharer: Name of the agent.
        share: What to publish.
        context: The agent's context, its last turn closed.
        prompt_at: Index of the prompt's segment in the context.
        identity: Identity of the agent's model.
        text: Its tokenizer, where the message needs its tokens' character ends; composed turns
            mostly have them.
        answer: The last turn without its thoughts, where these are left out.
    """
    segments = context.segments if answer is None else (*context.segments[:-1], answer)
    match share:
        case "output":
            chosen: tuple[Segment, ...] = (segments[-1],)
        case "prompt":
            chosen = (segments[prompt_at],)
        case "context":
            chosen = tuple(segment for segment in segments if segment.role != "system")
    if text is not None:
        chosen = tuple(_with_ends(segment, text) for segment in chosen)
    end = chosen[-1].position + len(chosen[-1].ids)
    return Message(
        sharer=sharer,
        segments=chosen,
        whole=share == "context",
        context=context.ids[:end],
        identity=identity,
    )


def _with_ends(segment: Segment, text: TextTokenizer) -> Segment:
    if len(segment.ends) == len(segment.words):
        return segment
    return replace(segment, ends=text.ends(segment.words, segment.text))


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished turn, as its agent's out-edges need it.

    Attributes:
        context: The agent's context, its last turn closed.
        prompt_at: Index of the prompt's segment in it.
        text: What was written; the prompt, where the agent only reads.
        state: The ticket for the context's state, where a reader or a later turn wants it.
        answer: The last turn without its thoughts; None where it has none.
        later: The context that the agent's next turn goes on from.
    """

    context: Context
    prompt_at: int
    text: str
    state: StateRef | None
    answer: Segment | None
    later: Context

    @property
    def thought_tokens(self) -> int:
        """How many tokens of the turn are thoughts."""
        if self.answer is None:
            return 0
        return self.answer.content[0] - self.context.segments[-1].content[0]


def finished(
    agent: AgentRun,
    composed: Context,
    prompt_at: int,
    reply: TurnReply | None,
    state: StateRef | None,
) -> Finished:
    """A turn that was computed.

    Args:
        agent: Whose turn it is.
        composed: Its context without what was written.
        prompt_at: Index of the prompt's segment in it.
        reply: What was written; None where the agent only reads.
        state: The ticket for the state.

    Raises:
        RunError: An answer that is not of the agent's shape.
    """
    if reply is None:
        text, bare = composed.segments[prompt_at].text, composed.bare()
        return Finished(composed, prompt_at, text, state, answer=None, later=bare)
    context, builder = reply.closed_context(), agent.model.context_builder
    answer, bare = reply.answered(context.segments[-1]), context.bare()
    try:
        require_whole(agent, (answer or context.segments[-1]).text)
    except RunError:
        if state is not None:
            agent.engine.release(state)
        raise
    kept = answer is None or agent.spec.thoughts == "keep"
    if answer is None or kept:
        return Finished(context, prompt_at, context.segments[-1].text, state, answer, later=bare)
    thoughts = builder.template.thoughts
    rewrites = thoughts is not None and thoughts.dropped
    later = builder.rewritten(bare, answer) if rewrites else bare
    return Finished(context, prompt_at, answer.text, state, answer, later=later)


def standing_in(agent: AgentRun, earlier: Context | None, text: str) -> Finished:
    """A turn that nobody computed, as if the agent had written this text.

    Args:
        agent: Whose turn it is.
        earlier: Its context without this text; None where nothing is known of that, or it begins.
        text: The text.
    """
    builder = agent.model.context_builder
    if agent.spec.generate is None:
        context = composed = builder.compose([ChatTurn("user", (text,))], earlier=earlier)
    else:
        composed = earlier or builder.compose([ChatTurn("user", ("",))])
        context = builder.compose([ChatTurn("assistant", (text,))], earlier=composed)
    return Finished(
        context=context,
        prompt_at=len(composed.segments) - 1,
        text=text,
        state=None,
        answer=None,
        later=context.bare(),
    )


@dataclass(frozen=True)
class Sender:
    """The out-edges of one run.

    Attributes:
        spec: The workflow.
        plan: Its plan.
        inputs: Checked input values.
        agents: The run's agents, by name.
        others: Inputs that some agents read in place of these, by agent.
        on_message: Told of every message that is sent, with the number of its edge.
    """

    spec: WorkflowSpec
    plan: Plan
    inputs: Mapping[str, object]
    agents: Mapping[str, AgentRun]
    others: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    on_message: Callable[[int, Message], object] | None = None

    def feeds_cache(self, agent: AgentRun) -> bool:
        """Whether a reader of this agent takes over its state."""
        return agent.spec.for_each is None and any(
            self.plan.channels[number].carries_state for number in self._out_edges(agent)
        )

    @cached_property
    def _spliced(self) -> frozenset[int]:
        """Edges whose state is not only continued, by their receivers or by those further on.

        A receiver's own state begins with the rows that it took over, so its readers must only
        continue too: a splice wants all rows of what both contexts begin with. A plan is of first
        turns, so where a loop may start others, or agents go on from a session, the whole state is
        kept. Where the ids turn out otherwise, the channel refuses the trimmed state and gives way.
        """
        edges = self.spec.edges
        later = any(agent.memory == "session" for agent in self.spec.agents.values())
        if later or any(edge.loop for edge in edges):
            return frozenset(range(len(edges)))
        incoming: dict[str, list[int]] = {}
        for number, edge in enumerate(edges):
            incoming.setdefault(edge.to, []).append(number)
        modes = [edge.mode for edge in self.plan.edges]
        waiting = [number for number, mode in enumerate(modes) if mode != "continuation"]
        spliced = set(waiting)
        while waiting:
            number = waiting.pop()
            if not self.plan.channels[number].carries_state:
                continue
            before = set(incoming.get(edges[number].from_, ())) - spliced
            spliced |= before
            waiting += before
        return frozenset(spliced)

    def captures(self, agent: AgentRun) -> tuple[int, ...]:
        """Layers whose inputs this agent's readers need."""
        channels = [self.plan.channels[number] for number in self._out_edges(agent)]
        return tuple(sorted({layer for channel in channels for layer in channel.captures}))

    async def send(self, agent: AgentRun, turns: Sequence[Finished]) -> dict[int, InFlight | None]:
        """Publish a turn, or one per item, on every out-edge whose condition holds."""
        state = turns[0].state if turns else None
        return await self.publish(agent, lambda number: self._message(agent, number, turns), state)

    def skips(self, agent: AgentRun) -> dict[int, InFlight | None]:
        """What an agent sends that has nothing to hand on: a skip on every out-edge."""
        return dict.fromkeys(self._out_edges(agent))

    async def publish(
        self, agent: AgentRun, make: Callable[[int], Message], state: StateRef | None
    ) -> dict[int, InFlight | None]:
        """Send a message made for each out-edge whose condition holds, with its state."""
        sent: dict[int, InFlight | None] = {}
        told = told_of(agent)
        inputs = self.others.get(agent.name, self.inputs)
        context = {"inputs": dict(inputs), agent.name: {"text": agent.texts[-1], **told}}
        for number in self._out_edges(agent):
            edge = self.spec.edges[number]
            if edge.when is not None and not evaluate(edge.when, context):
                sent[number] = None
                continue
            message = make(number)
            if self.on_message is not None:
                self.on_message(number, message)
            ticket = None
            if state is not None and self.plan.channels[number].carries_state:
                how = Keep(
                    codec=edge.codec,
                    trimmed=number not in self._spliced,
                    holder=f"{edge.from_} -> {edge.to}",
                )
                ticket = await agent.engine.keep(state, message.context, how)
            sent[number] = InFlight(message, ticket, told)
        return sent

    @cached_property
    def _by_sharer(self) -> dict[str, list[int]]:
        edges: dict[str, list[int]] = {name: [] for name in self.agents}
        for number, edge in enumerate(self.spec.edges):
            edges[edge.from_].append(number)
        return edges

    def _out_edges(self, agent: AgentRun) -> list[int]:
        return self._by_sharer[agent.name]

    def _message(self, agent: AgentRun, number: int, turns: Sequence[Finished]) -> Message:
        edge, identity = self.spec.edges[number], agent.model.identity
        share = self.spec.share_of(edge)
        theirs = self.agents[edge.to].model.identity.tokenizer
        aligned = self.plan.channels[number].carries_state and theirs != identity.tokenizer
        text = agent.model.text if aligned else None
        drops = self.spec.drops_thoughts(edge)
        parts = [
            publish(
                agent.name,
                share,
                turn.context,
                turn.prompt_at,
                identity,
                text,
                turn.answer if drops else None,
            )
            for turn in turns
        ]
        if len(parts) == 1:
            return parts[0]
        segments = tuple(segment for part in parts for segment in part.segments)
        return Message(
            sharer=agent.name,
            segments=segments,
            whole=share == "context",
            context=(),
            identity=identity,
        )
