"""When on the graph a state is needed next, so that what is needed last makes room first."""

from functools import cached_property

import networkx as nx

from unspoken.agents.spec.graph import build_graph, forward_graph
from unspoken.agents.spec.spec import WorkflowSpec


class NextUse:
    """Places in the order of firing: the lower, the sooner.

    An agent's place is the length of the longest way to it. What a loop brings back is read in the
    next round, after all of this one.

    Args:
        spec: A valid workflow.
    """

    def __init__(self, spec: WorkflowSpec) -> None:
        self._spec, self._edges = spec, spec.edges

    @cached_property
    def _levels(self) -> dict[str, int]:
        generations = nx.topological_generations(forward_graph(build_graph(self._spec)))
        return {name: number for number, names in enumerate(generations) for name in names}

    @cached_property
    def _round(self) -> int:
        return 1 + max(self._levels.values(), default=-1)

    def of_edge(self, number: int) -> int:
        """When the message of an edge is read."""
        edge = self._edges[number]
        return self._levels[edge.to] + (self._round if edge.loop else 0)

    def of_agent(self, name: str) -> int:
        """When an agent that had its turn goes on from it."""
        return self._levels[name] + self._round
