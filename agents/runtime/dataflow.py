"""When an agent fires: joins, skips, conditions and bounded loops, as pure logic over edge numbers.

An edge delivers a message or a skip. A run goes in rounds. In a round every agent that takes part
waits for the edges whose sharers take part too, and fires at most once. The first round has all
agents. A loop edge's message starts another one, of its target and all that follows from it: the
region. Of what the members hold, messages from outside the round stand. Those that members or loops
brought in an earlier round are forgotten.

Targets whose regions meet, or that one round can lead to, form a cluster. A cluster has one round
at a time: the next begins when all of its agents are at rest. So what an agent reads depends on
nobody's speed, but with ``join: any`` or ``first``, which are about speed. An agent that no loop
depends on and that has one turn left of its ``max_turns`` takes it after the last round.

The page on concepts says the same for people, and a sequential model in the tests for machines.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import networkx as nx

from unspoken.agents.spec.graph import forward_graph
from unspoken.agents.spec.spec import AgentSpec, EdgeSpec
from unspoken.agents.spec.turns import FirstSpec

if TYPE_CHECKING:
    Graph = nx.MultiDiGraph[str]  # not subscriptable at run time


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
    """An agent had nothing but skips in a round, or no turn left, and passes the skip on."""

    agent: str


@dataclass(frozen=True, slots=True)
class Exhausted(Generic[Item]):
    """An edge's message was dropped since its receiver had all its turns."""

    edge: int
    agent: str
    item: Item


@dataclass(frozen=True, slots=True)
class Unread(Generic[Item]):
    """A message that its receiver never reads.

    Attributes:
        edge: The edge that brought it.
        item: The message.
        late: Whether its receiver had begun without it; else a newer message took its place.
    """

    edge: int
    item: Item
    late: bool = False


Action: TypeAlias = Firing[Item] | Skipped | Exhausted[Item] | Unread[Item]


@dataclass(slots=True, kw_only=True)
class _Node(Generic[Item]):
    """An agent: what it waits for, what it holds, and where it is in the present round.

    Attributes:
        spec: What the workflow says of it.
        free: Whether no loop depends on it, so that it can wait for the last round.
        forward: Its in-edges that are no loops.
        expects: Those that have brought nothing yet in this round.
        standing: The messages that its next turn reads.
        fresh: Edges whose message no turn has read yet.
        came: How many messages came in this round.
        fired: Whether it had its turn in this round, or was skipped.
        held: Whether it has what it waits for and waits for the last round.
        turns: How many turns it has had.
        waiting: Loop messages for the next round.
    """

    spec: AgentSpec
    free: bool
    forward: frozenset[int]
    expects: set[int]
    standing: dict[int, Item] = field(default_factory=dict)
    fresh: set[int] = field(default_factory=set)
    came: int = 0
    fired: bool = False
    held: bool = False
    running: bool = False
    turns: int = 0
    waiting: dict[int, Item] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """How many turns it may still take."""
        return (self.spec.max_turns or inf) - self.turns

    @property
    def ready(self) -> bool:
        """Whether the messages of this round start its turn."""
        if not self.came or not self.expects:
            return self.came > 0
        match self.spec.join:
            case "all":
                return False
            case "any":
                return True
            case FirstSpec(first=first):
                return self.came >= first

    def forget(self, keys: Iterable[int]) -> list[Unread[Item]]:
        """Take messages away; those that no turn has read are given back."""
        unread = []
        for key in sorted(self.standing.keys() & set(keys)):
            item = self.standing.pop(key)
            if key in self.fresh:
                self.fresh.discard(key)
                unread.append(Unread(key, item, late=self.fired))
        return unread


class Dataflow(Generic[Item]):
    """The state of one run's firing.

    Args:
        graph: The workflow's graph, as `unspoken.agents.spec.graph.build_graph` makes it.
    """

    def __init__(self, graph: "Graph") -> None:
        self._edges: dict[int, EdgeSpec] = {
            key: data["edge"] for _, _, key, data in graph.edges(keys=True, data=True)
        }
        forward = forward_graph(graph)
        loops = [edge for edge in self._edges.values() if edge.loop]
        self._regions = {edge.to: {edge.to, *nx.descendants(forward, edge.to)} for edge in loops}
        places = {name: n for n, name in enumerate(graph)}
        order = nx.lexicographical_topological_sort(forward, key=places.__getitem__)
        self._clusters = _clusters(self._regions, loops, order) if loops else []
        sources = {edge.from_ for edge in loops}
        needed = sources.union(*(nx.ancestors(forward, name) for name in sources))
        self._skips: dict[str, dict[int, None]] = {name: {} for name in graph}
        incoming: dict[str, set[int]] = {name: set() for name in graph}
        for key, edge in self._edges.items():
            if not edge.loop:
                incoming[edge.to].add(key)
                self._skips[edge.from_][key] = None
        self._nodes: dict[str, _Node[Item]] = {
            name: _Node(
                spec=data["agent"],
                free=name not in needed,
                forward=frozenset(incoming[name]),
                expects=incoming[name],
            )
            for name, data in graph.nodes(data=True)
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
        return [*self._deliver(sent), *self._next_rounds()]

    def last_turn(self, agent: str) -> bool:
        """Whether this agent can never fire again, whatever its readers do."""
        return self._nodes[agent].left <= 0 or not self._may_be_in_a_round(agent)

    def _may_be_in_a_round(self, agent: str) -> bool:
        return any(
            agent in region and self._nodes[target].left > 0
            for target, region in self._regions.items()
        )

    def _deliver(self, sent: Mapping[int, Item | None]) -> list[Action[Item]]:
        """Put messages where they go, settle the agents that they reach, and so on."""
        actions: list[Action[Item]] = []
        reached = deque(self._put(sent, actions))
        while reached:
            name = reached.popleft()
            if self._settle(name, actions):
                reached.extendleft(reversed(self._put(self._skips[name], actions)))
        return actions

    def _put(self, sent: Mapping[int, Item | None], actions: list[Action[Item]]) -> list[str]:
        """Put messages where they go; the agents that they reach in this round, each once."""
        reached: dict[str, None] = {}
        for key, item in sent.items():
            edge = self._edges[key]
            node = self._nodes[edge.to]
            if edge.loop:
                if item is not None:
                    actions += _replaced(node.waiting, key)
                    node.waiting[key] = item
                continue
            node.expects.discard(key)
            reached[edge.to] = None
            if item is None:
                continue
            if node.fired and self.last_turn(edge.to):
                actions.append(Unread(key, item, late=True))
                continue
            actions += node.forget((key,))
            node.standing[key] = item
            node.fresh.add(key)
            node.came += 1
        return list(reached)

    def _settle(self, name: str, actions: list[Action[Item]]) -> bool:
        """Fire an agent that has what it waits for; whether it passes on a skip instead."""
        node = self._nodes[name]
        ready = node.ready
        if node.fired or node.held or (node.expects and not ready):
            return False
        if ready and node.left > 0:
            node.held = node.left == 1 and node.free and self._may_be_in_a_round(name)
            if not node.held:
                actions.append(self._fire(name))
            return False
        node.fired = True
        if ready:
            dropped = node.forget(list(node.fresh))
            actions += [Exhausted(unread.edge, name, unread.item) for unread in dropped]
        actions.append(Skipped(name))
        return True

    def _fire(self, name: str) -> Firing[Item]:
        node = self._nodes[name]
        node.fired = node.running = True
        node.held = False
        node.turns += 1
        inbox = {key: node.standing[key] for key in sorted(node.standing)}
        firing = Firing(name, node.turns, inbox, frozenset(node.fresh))
        node.fresh.clear()
        return firing

    def _next_rounds(self) -> list[Action[Item]]:
        """Start the next round of each cluster that is at rest; where there is none, what waits."""
        actions: list[Action[Item]] = []
        for cluster in self._clusters:
            if not self._at_rest(cluster):
                continue
            actions += self._exhausted(cluster)
            targets = {name for name in cluster if self._nodes[name].waiting}
            inner = [name for name in targets if not (self._regions[name] - {name}) & targets]
            if inner:
                actions += self._round([name for name in cluster if name in inner])
            else:
                actions += [self._fire(name) for name in cluster if self._nodes[name].held]
        return actions

    def _at_rest(self, cluster: list[str]) -> bool:
        """Whether the present round is over for a cluster, but for what waits for the last one."""
        waits: set[str] = set()
        for name in cluster:
            node = self._nodes[name]
            if node.running:
                return False
            # The cluster lists sharers before receivers.
            if node.held or any(self._edges[key].from_ in waits for key in node.expects):
                waits.add(name)
            elif node.expects or not node.fired:
                return False
        return True

    def _exhausted(self, cluster: list[str]) -> list[Action[Item]]:
        """Drop the loop messages whose targets had all their turns."""
        actions: list[Action[Item]] = []
        for name in cluster:
            node = self._nodes[name]
            if node.left <= 0:
                actions += [Exhausted(key, name, item) for key, item in node.waiting.items()]
                node.waiting.clear()
        return actions

    def _round(self, targets: list[str]) -> list[Action[Item]]:
        """Start a round of these targets and of what follows from them."""
        actions: list[Action[Item]] = []
        members = set[str]().union(*(self._regions[target] for target in targets))
        for name, node in self._nodes.items():
            if name not in members:
                continue
            inside = {key for key in node.forward if self._edges[key].from_ in members}
            actions += node.forget({key for key in node.standing if self._edges[key].loop} | inside)
            if name in targets:
                node.standing |= node.waiting
                node.fresh |= node.waiting.keys()
                node.waiting.clear()
            else:
                node.expects |= inside
                node.fired = node.held = False
                node.came = 0
        return [*actions, *(self._fire(name) for name in targets)]


def _replaced(waiting: Mapping[int, Item], key: int) -> Iterator[Unread[Item]]:
    """A loop's message that a newer one replaces."""
    if key in waiting:
        yield Unread(key, waiting[key])


def _clusters(
    regions: Mapping[str, set[str]], loops: Iterable[EdgeSpec], order: Iterable[str]
) -> list[list[str]]:
    """The agents that share rounds: regions that meet, with the agents that loop into them.

    Args:
        regions: By loop target, what starts again with it.
        loops: The loop edges.
        order: All agents, sharers before receivers; a cluster lists its own so.
    """
    groups: list[set[str]] = []
    for target, region in regions.items():
        group = region.union(edge.from_ for edge in loops if edge.to == target)
        meets = [other for other in groups if other & group]
        groups = [*(other for other in groups if other not in meets), group.union(*meets)]
    place = {name: n for n, name in enumerate(order)}
    return [sorted(group, key=place.__getitem__) for group in groups]
