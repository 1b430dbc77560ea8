"""What the turns of an agent have to compute, piece by piece of their contexts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING

from unspoken.agents.costs.pace import Pace
from unspoken.agents.costs.store import Lengths
from unspoken.agents.costs.tokens import PieceTokens
from unspoken.agents.engines.asks import most_prefilled
from unspoken.agents.planning.outline import OutlinePiece, Outlines
from unspoken.agents.planning.plan import EdgePlan, Plan
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.projected import ProjectedCacheChannel
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.storage.side import pair_digest

if TYPE_CHECKING:
    from unspoken.agents.models.base import AgentModel

CLOSING = 3
"""Tokens that close a written turn, the last one sampled included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeWork:
    """What a message takes of its receiver.

    Attributes:
        tokens: Its tokens.
        computed: Those of them that the receiver computes.
        carry: Seconds to put the state of the others in place.
        seconds: These, and those to compute.
    """

    tokens: float = 0.0
    computed: float = 0.0
    carry: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnWork:
    """What a turn computes.

    Attributes:
        prompt: Tokens of its context.
        computed: Those of them that are computed.
        carry: Seconds to put states in place.
        steps: Forwards that write.
        written: Tokens that are written.
        closes: Tokens that are computed after the last step.
        edges: By number of the edge, what its message takes of it.
    """

    prompt: float = 0.0
    computed: float = 0.0
    carry: float = 0.0
    steps: float = 0.0
    written: float = 0.0
    closes: float = 0.0
    edges: dict[int, EdgeWork] = field(default_factory=dict)

    def times(self, share: float) -> "TurnWork":
        """The work of a turn that is taken in this share of runs."""
        return replace(
            self,
            computed=self.computed * share,
            carry=self.carry * share,
            steps=self.steps * share,
            written=self.written * share,
            closes=self.closes * share,
        )


@dataclass(eq=False, kw_only=True)
class Works:
    """The works of a workflow's agents.

    Attributes:
        spec: The workflow.
        models: The model of every agent.
        plan: Its plan.
        tokens: Counts tokens.
        paces: The pace of every agent's model; none of one that computes elsewhere.
        lengths: What agents did in earlier runs.
    """

    spec: WorkflowSpec
    models: "dict[str, AgentModel]"
    plan: Plan
    tokens: PieceTokens
    paces: dict[str, Pace]
    lengths: Lengths

    def __post_init__(self) -> None:
        templates = {name: model.template for name, model in self.models.items()}
        self._outlines = Outlines(self.spec, templates)

    def first(self, agent: str) -> TurnWork:
        """An agent's first turn, or an item of it."""
        return self._of(agent, list(self._read(agent, self._outlines[agent])), reread=True)

    def later(self, agent: str) -> TurnWork:
        """A turn that a loop has started."""
        pieces = list(self._outlines.later(agent))
        if self.spec.agents[agent].memory != "turn":
            # What stood in its context before has its state; only what is new is read.
            before = self._kept(agent)
            new = [piece for piece in pieces if self._is_new(piece)]
            work = self._of(agent, new, reread=False)
            return replace(work, prompt=work.prompt + before)
        return self._of(agent, pieces, reread=True)

    def _kept(self, agent: str) -> float:
        first = self._read(agent, self._outlines[agent])
        return sum(self.tokens.of(piece, agent) for piece in first) + self.tokens.written[agent]

    def _is_new(self, piece: OutlinePiece) -> bool:
        standing = piece.edge is not None and not self.spec.edges[piece.edge].loop
        return piece.key[0] != "system" and not standing

    def _read(self, agent: str, pieces: Sequence[OutlinePiece]) -> Iterator[OutlinePiece]:
        """The pieces of a context up to what the agent itself writes."""
        own = (("output", agent), ("thoughts", agent))
        for piece in pieces:
            if piece.edge is None and piece.key in own:
                return
            yield piece

    def _of(self, agent: str, pieces: Sequence[OutlinePiece], *, reread: bool) -> TurnWork:
        pace = self.paces.get(agent)
        if pace is None:
            return TurnWork()
        sizes = [self.tokens.of(piece, agent) for piece in pieces]
        prefix = self._prefix(agent, pieces) if reread else 0
        prompt, reused = sum(sizes), sum(sizes[:prefix])
        own, brought, beyond = 0.0, dict[int, float](), dict[int, float]()
        for index, (piece, size) in enumerate(zip(pieces, sizes, strict=True)):
            if piece.edge is not None:
                brought[piece.edge] = brought.get(piece.edge, 0.0) + size
            if index >= prefix and piece.edge is not None:
                beyond[piece.edge] = beyond.get(piece.edge, 0.0) + size
            elif index >= prefix:
                own += size
        edges, computed, carry = dict[int, EdgeWork](), own, reused * pace.reuse
        for number, tokens in brought.items():
            edge = self._carried(agent, number, tokens, beyond.get(number, 0.0), prompt, pace)
            edges[number] = edge
            computed += edge.computed
            carry += edge.carry - min(tokens - beyond.get(number, 0.0), reused) * pace.reuse
        steps, written = self._steps(agent, computed)
        return TurnWork(
            prompt=prompt,
            computed=max(computed, 1.0),
            carry=max(carry, 0.0),
            steps=steps,
            written=written,
            closes=CLOSING if written and self._is_kept(agent) else 0,
            edges=edges,
        )

    def _prefix(self, agent: str, pieces: Sequence[OutlinePiece]) -> int:
        """How many pieces have the same state as at a sharer, by the longest of all messages."""
        longest = 0
        for edge in self.plan.edges:
            if edge.receiver != agent or edge.mode not in ("continuation", "splice"):
                continue
            theirs = self._outlines[edge.sharer]
            pairs = zip(theirs, pieces, strict=False)
            shared = next(
                (n for n, (left, right) in enumerate(pairs) if left.key != right.key),
                min(len(theirs), len(pieces)),
            )
            longest = max(longest, shared)
        return longest

    def _carried(
        self, agent: str, number: int, tokens: float, beyond: float, prompt: float, pace: Pace
    ) -> EdgeWork:
        """What a message takes, of which some tokens stand beyond the common beginning."""
        edge = self.plan.edges[number]
        computed, carry = self._beyond(agent, edge, beyond, prompt, pace)
        carry += (tokens - beyond) * pace.reuse
        seconds = carry + pace.read(computed, max(prompt - computed, 0.0))
        return EdgeWork(tokens=tokens, computed=computed, carry=carry, seconds=seconds)

    def _beyond(
        self, agent: str, edge: EdgePlan, beyond: float, prompt: float, pace: Pace
    ) -> tuple[float, float]:
        """Tokens to compute of a message's rest, and seconds to carry the others."""
        channel, layers = self.plan.channels[edge.number], len(self.models[agent].geometry.layers)
        match edge.mode:
            case "continuation" | "splice":
                again = min(beyond, edge.repaired or 0)
                if isinstance(channel, SameModelCacheChannel) and channel.deviation:
                    again = min(beyond, max(channel.deviation * beyond, channel.sink))
                return again, beyond * (pace.reuse + pace.splice)
            case "recompute":
                recomputed = sum(stop - first for first, stop in edge.recompute or ())
                some = beyond * recomputed / layers
                return 0.0, beyond * pace.reuse + pace.read(some, prompt - beyond)
            case "projected" | "fused":
                assert isinstance(channel, ProjectedCacheChannel)
                ends = channel.bridge.manifest
                pair = pair_digest(ends.sharer.to_identity(), ends.receiver.to_identity())
                again = beyond if edge.mode == "fused" else min(beyond, channel.sink)
                native = pace.read(
                    (prompt if edge.native_layers else 0) * edge.native_layers / layers
                )
                return again, native + beyond * (pace.reuse + pace.project.get(pair, 0.0))
        return beyond, 0.0

    def _steps(self, agent: str, computed: float) -> tuple[float, float]:
        """Forwards that write, beside the one that reads, and the tokens written."""
        spec, known = self.spec.agents[agent], self.lengths.agents.get(agent)
        if spec.generate is None:
            return 0.0, 0.0
        written = self.tokens.written[agent]
        steps = max(written - 1, 0.0)
        if known is not None and known.turns and known.forwards:
            most = most_prefilled(self.models[agent].device, beside=False)
            others = ceil(max(computed, 1.0) / most) + (1 if self._is_kept(agent) else 0)
            steps = min(steps, max(known.forwards - others, 0.0))
        return (0.0 if spec.generate.choices else steps), written

    def _is_kept(self, agent: str) -> bool:
        """Whether a later turn or a reader goes on from an agent's state."""
        spec = self.spec.agents[agent]
        if spec.for_each is not None:
            return False
        remembers = spec.memory == "session" or (spec.memory == "run" and (spec.max_turns or 1) > 1)
        feeds = (
            self.plan.channels[edge.number].carries_state
            for edge in self.plan.edges
            if edge.sharer == agent
        )
        return remembers or any(feeds)
