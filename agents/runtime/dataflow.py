"""When an agent fires: joins, skips, conditions and bounded loops, as pure logic over edge numbers.

An edge delivers a message or a skip. An agent waits for the edges it expects in the present wave. A
loop edge's message starts a new wave at its target: every agent that follows from the target
expects again those edges whose sharers are part of the wave, while what other edges brought stands.
It waits until the agents of its region are done with the present wave, so that no agent mixes
messages of two waves or runs twice at a time; what several loop edges bring to one target until
then starts one wave.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from unspoken.agents.spec.graph import loop_region
from unspoken.agents.spec.spec import AgentSpec, EdgeSpec

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Action", "Dataflow", "Exhausted", "Firing", "Skipped", "Unread"]

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Firing(Generic[Item]):
    """An agent is to take a turn.

    Attributes:
        agent: Its name.
        turn: Which turn of it this is, counted from 1.
        inbox: Messages by edge number, in the workflow's order.
        fresh: Edges whose message arrived since its last turn.
    """

    agent: str
    turn: int
    inbox: Mapping[int, Item]
    fresh: frozenset[int]


@dataclass(frozen=True, slots=True)
class Skipped:
    """An agent had nothing but skips in a wave and passes the skip on."""

    agent: str


@dataclass(frozen=True, slots=True)
class Exhausted(Generic[Item]):
    """A loop edge's message was dropped since its target had all its turns."""

    edge: int
    agent: str
    item: Item


@dataclass(frozen=True, slots=True)
class Unread(Generic[Item]):
    """A message that its receiver will never read: a newer one took its place, or it came after the
    last turn.
    """

    edge: int
    item: Item


Action: TypeAlias = Firing[Item] | Skipped | Exhausted[Item] | Unread[Item]


@dataclass(slots=True)
class _Node(Generic[Item]):
    spec: AgentSpec
    forward: frozenset[int]
    expects: set[int]
    standing: dict[int, Item] = field(default_factory=dict)
    fresh: set[int] = field(default_factory=set)
    called: bool = False
    fired: bool = False
    running: bool = False
    turns: int = 0
    waiting: dict[int, Item] = field(default_factory=dict)


class Dataflow(Generic[Item]):
    """The state of one run's firing.

    Args:
        graph: The workflow's graph, as `unspoken.agents.spec.graph.build_graph` makes it.
    """

    def __init__(self, graph: "nx.MultiDiGraph[str]") -> None:
        self._edges: dict[int, EdgeSpec] = {
            key: data["edge"] for _, _, key, data in graph.edges(keys=True, data=True)
        }
        self._nodes: dict[str, _Node[Item]] = {}
        for name, data in graph.nodes(data=True):
            forward = frozenset(
                key for key, edge in self._edges.items() if edge.to == name and not edge.loop
            )
            self._nodes[name] = _Node(data["agent"], forward, set(forward))
        self._regions = {
            edge.to: loop_region(graph, edge) for edge in self._edges.values() if edge.loop
        }

    def start(self) -> list[Action[Item]]:
        """Fire every agent that waits for nothing."""
        return [self._fire(name) for name, node in self._nodes.items() if not node.forward]

    def complete(self, agent: str, sent: Mapping[int, Item | None]) -> list[Action[Item]]:
        """An agent's turn has ended and sent these messages; None is a skip.

        Returns:
            What happens next, in order.
        """
        self._nodes[agent].running = False
        return [*self._deliver(sent), *self._next_waves()]

    def last_turn(self, agent: str) -> bool:
        """Whether this agent can never fire again, whatever its readers do."""
        return not any(
            agent in region and self._nodes[target].turns < self._nodes[target].spec.max_turns
            for target, region in self._regions.items()
        )

    def _deliver(self, sent: Mapping[int, Item | None]) -> list[Action[Item]]:
        actions: list[Action[Item]] = []
        reached: dict[str, None] = {}
        for key, item in sent.items():
            edge = self._edges[key]
            node = self._nodes[edge.to]
            if edge.loop:
                actions += self._replace(node.waiting, key, item)
                continue
            reached[edge.to] = None
            node.expects.discard(key)
            if item is None:
                continue
            if node.fired and self.last_turn(edge.to):
                actions.append(Unread(key, item))
                continue
            if key in node.fresh:
                actions.append(Unread(key, node.standing[key]))
            node.standing[key] = item
            node.fresh.add(key)
            node.called = True
        for name in reached:
            actions += self._settle(name)
        return actions

    def _replace(
        self, waiting: dict[int, Item], key: int, item: Item | None
    ) -> Iterator[Unread[Item]]:
        """Let a loop edge's message wait for the next wave."""
        if item is not None:
            if key in waiting:
                yield Unread(key, waiting[key])
            waiting[key] = item

    def _settle(self, name: str) -> list[Action[Item]]:
        """Fire or skip an agent if it has what it waits for."""
        node = self._nodes[name]
        if node.fired:
            return []
        if node.called and (node.spec.join == "any" or not node.expects):
            return [self._fire(name)]
        if node.expects:
            return []
        node.fired = True
        skips: dict[int, Item | None] = {
            key: None for key, edge in self._edges.items() if edge.from_ == name and not edge.loop
        }
        return [Skipped(name), *self._deliver(skips)]

    def _fire(self, name: str) -> Firing[Item]:
        node = self._nodes[name]
        node.fired = node.running = True
        node.turns += 1
        inbox = {key: node.standing[key] for key in sorted(node.standing)}
        firing = Firing(name, node.turns, inbox, frozenset(node.fresh))
        node.fresh.clear()
        return firing

    def _next_waves(self) -> list[Action[Item]]:
        """Start the waves whose regions are at rest; those ready together share one wave."""
        actions: list[Action[Item]] = []
        while ready := self._ready():
            for target in ready:
                actions += self._wave(target)
        return actions

    def _ready(self) -> list[str]:
        """Targets that a message waits for, whose region is at rest, and in whose region no other
        one is waited for.
        """
        waiting = {name for name, node in self._nodes.items() if node.waiting}
        return [
            name
            for name in self._nodes
            if name in waiting
            and not (self._regions[name] - {name}) & waiting
            and self._at_rest(name)
        ]

    def _at_rest(self, target: str) -> bool:
        """Whether the present wave is over for every agent of a target's region."""
        nodes = {name: self._nodes[name] for name in self._regions[target]}
        return all(
            node.fired and not node.running and (name == target or not node.expects)
            for name, node in nodes.items()
        )

    def _wave(self, target: str) -> list[Action[Item]]:
        """Start a new wave at a target with the loop edges' messages that wait for it."""
        node, region = self._nodes[target], self._regions[target]
        arrived = dict(node.waiting)
        node.waiting.clear()
        if node.turns >= node.spec.max_turns:
            return [Exhausted(key, target, item) for key, item in arrived.items()]
        node.standing |= arrived
        node.fresh |= arrived.keys()
        for name in region - {target}:
            other = self._nodes[name]
            other.expects |= {key for key in other.forward if self._edges[key].from_ in region}
            other.fired = other.called = False
        return [self._fire(target)]
