"""When an agent fires: joins, skips, conditions and bounded loops, as pure logic over edge numbers.

An edge delivers a message or a skip. An agent waits for the edges it expects in the present wave. A loop edge's
message starts a new wave at its target: every agent that follows from the target expects anew those edges whose
sharers are part of the wave, while what other edges brought stands.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

from unspoken.agents.graph import loop_region
from unspoken.agents.spec import AgentSpec, EdgeSpec

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["Dataflow", "Exhausted", "Firing", "Skipped"]

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Firing(Generic[Item]):
    """An agent is to take a turn.

    Attributes:
        agent: Its name.
        turn: Which turn of it this is, counted from 1.
        inbox: Messages at hand by edge number, in the workflow's order.
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
class Exhausted:
    """A loop edge's message was dropped since its target had all its turns."""

    edge: int
    agent: str


@dataclass(slots=True)
class _Node:
    spec: AgentSpec
    forward: frozenset[int]
    loops: frozenset[int]
    expects: set[int]
    standing: dict[int, object] = field(default_factory=dict)
    fresh: set[int] = field(default_factory=set)
    fired: bool = False
    running: bool = False
    again: bool = False
    turns: int = 0


class Dataflow(Generic[Item]):
    """The state of one run's firing.

    Args:
        graph: The workflow's graph, as `unspoken.agents.graph.build_graph` makes it.
    """

    def __init__(self, graph: "nx.MultiDiGraph[str]") -> None:
        self._graph = graph
        self._edges: dict[int, EdgeSpec] = {
            key: data["edge"] for _, _, key, data in graph.edges(keys=True, data=True)
        }
        self._nodes: dict[str, _Node] = {}
        for name, data in graph.nodes(data=True):
            into = {key: edge for key, edge in self._edges.items() if edge.to == name}
            forward = frozenset(key for key, edge in into.items() if not edge.loop)
            self._nodes[name] = _Node(
                data["agent"], forward, frozenset(into) - forward, set(forward)
            )

    def start(self) -> list[Firing[Item] | Skipped | Exhausted]:
        """Fire every agent that waits for nothing."""
        return [self._fire(name) for name, node in self._nodes.items() if not node.forward]

    def complete(
        self, agent: str, sent: Mapping[int, Item | None]
    ) -> list[Firing[Item] | Skipped | Exhausted]:
        """An agent's turn has ended and sent these messages; None is a skip.

        Returns:
            What happens next, in order.
        """
        node = self._nodes[agent]
        node.running = False
        events = self._deliver(sent)
        if node.again and not node.running:
            node.again = False
            events.append(self._fire(agent))
        return events

    def last_turn(self, agent: str) -> bool:
        """Whether this agent can never fire again, whatever its readers do."""
        loops = [edge for edge in self._edges.values() if edge.loop]
        return not any(
            agent in loop_region(self._graph, edge)
            and self._nodes[edge.to].turns < self._nodes[edge.to].spec.max_turns
            for edge in loops
        )

    def _deliver(self, sent: Mapping[int, Item | None]) -> list[Firing[Item] | Skipped | Exhausted]:
        events: list[Firing[Item] | Skipped | Exhausted] = []
        forward = {key: item for key, item in sent.items() if not self._edges[key].loop}
        for key, item in forward.items():
            node = self._nodes[self._edges[key].to]
            node.expects.discard(key)
            if item is not None:
                node.standing[key] = item
                node.fresh.add(key)
        for name in dict.fromkeys(self._edges[key].to for key in forward):
            events += self._settle(name)
        for key, item in sent.items():
            if self._edges[key].loop and item is not None:
                events += self._loop(key, item)
        return events

    def _settle(self, name: str) -> list[Firing[Item] | Skipped | Exhausted]:
        """Fire or skip an agent if it has what it waits for."""
        node = self._nodes[name]
        if node.fired:
            return []
        if node.fresh & node.forward and (node.spec.join == "any" or not node.expects):
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
        firing: Firing[Item] = Firing(name, node.turns, inbox, frozenset(node.fresh))  # type: ignore[arg-type]
        node.fresh.clear()
        return firing

    def _loop(self, key: int, item: Item) -> list[Firing[Item] | Skipped | Exhausted]:
        """Start a new wave at a loop edge's target."""
        edge = self._edges[key]
        target = self._nodes[edge.to]
        if target.turns + target.again >= target.spec.max_turns:
            return [Exhausted(key, edge.to)]
        target.standing[key] = item
        target.fresh.add(key)
        region = loop_region(self._graph, edge)
        for name in region - {edge.to}:
            node = self._nodes[name]
            node.expects |= self._from(region, node.forward)
            node.fired = False
        if target.running:
            target.again = True
            return []
        return [self._fire(edge.to)]

    def _from(self, region: Iterable[str], keys: Iterable[int]) -> set[int]:
        members = set(region)
        return {key for key in keys if self._edges[key].from_ in members}
