"""The workflow as a graph: agents are nodes, edges are channels.

Edges without ``loop: true`` have no cycle: they fire in one round. A loop edge starts its target
again, and with it all that follows from the target: its region.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import networkx as nx

from unspoken.agents.spec.problems import listed, suggest
from unspoken.agents.spec.references import template_problems
from unspoken.agents.spec.spec import EdgeSpec, WorkflowSpec
from unspoken.agents.spec.turns import FirstSpec
from unspoken.channels.errors import Problem, WorkflowError

if TYPE_CHECKING:
    Graph = nx.MultiDiGraph[str]  # not subscriptable at run time
else:
    Graph = nx.MultiDiGraph


def build_graph(spec: WorkflowSpec) -> Graph:
    """Return the graph of a workflow.

    Nodes have their `AgentSpec` as ``agent``, edges their `EdgeSpec` as ``edge``; an edge's key is
    its index in ``spec.edges``.

    Raises:
        WorkflowError: An edge names an agent that does not exist.
    """
    problems = list(_end_problems(spec))
    if problems:
        raise WorkflowError(problems)
    return _graph(spec)


def _graph(spec: WorkflowSpec) -> Graph:
    graph: Graph = nx.MultiDiGraph(name=spec.name)
    for name, agent in spec.agents.items():
        graph.add_node(name, agent=agent)
    for n, edge in enumerate(spec.edges):
        if edge.from_ in spec.agents and edge.to in spec.agents:
            graph.add_edge(edge.from_, edge.to, key=n, edge=edge)
    return graph


def forward_graph(graph: Graph) -> nx.DiGraph[str]:
    """Return the edges that are not loops, without their parallels."""
    forward: nx.DiGraph[str] = nx.DiGraph()
    forward.add_nodes_from(graph)
    edges: Iterable[tuple[str, str, EdgeSpec]] = graph.edges(data="edge")
    forward.add_edges_from((sharer, receiver) for sharer, receiver, edge in edges if not edge.loop)
    return forward


def asks_people(spec: WorkflowSpec) -> bool:
    """Whether anybody is asked anything, in workflows inside of it too."""
    asks = [*(agent.ask for agent in spec.agents.values()), *(edge.ask for edge in spec.edges)]
    inner = (agent.workflow for agent in spec.agents.values())
    return any(asks) or any(one is not None and asks_people(one) for one in inner)


def validate(spec: WorkflowSpec, *, whole_edges: bool = True) -> list[Problem]:
    """Return everything wrong with how the parts of a workflow fit together.

    `Problem.where` holds the path of the part at fault, such as ``edges[2].from``.

    Args:
        spec: The workflow.
        whole_edges: Whether all of its edges are there; else only names and templates are checked.
    """
    ends = list(_end_problems(spec))
    if not whole_edges:
        return [*_name_problems(spec), *ends, *template_problems(spec, all_connected=True)]
    graph = _graph(spec)
    problems = [
        *_name_problems(spec),
        *_agent_problems(spec),
        *ends,
        *_edge_problems(spec),
        *_unmarked_cycles(spec, graph),
        *template_problems(spec, all_connected=bool(ends)),
    ]
    # With an end misspelt, what seems not to be connected may well be.
    return problems if ends else [*problems, *_idle_loops(spec, graph)]


def _agent_problems(spec: WorkflowSpec) -> Iterator[Problem]:
    if not spec.agents:
        yield Problem("the workflow has no agents", "agents", "at least one agent", "add an agent")
    looped = {edge.to: edge.from_ for edge in spec.edges if edge.loop}
    read = Counter(edge.to for edge in spec.edges if not edge.loop)
    for name, agent in spec.agents.items():
        if isinstance(agent.join, FirstSpec) and agent.join.first > read[name]:
            yield Problem(
                f"agent '{name}' starts at its first {agent.join.first} messages, and {read[name]} "
                "edges lead to it",
                f"agents.{name}.join",
                f"at most {read[name]}",
                "lower 'first', or add edges",
            )
        if agent.memory == "session" and agent.workflow is not None:
            yield Problem(
                f"agent '{name}' is a workflow, and has memory: session",
                f"agents.{name}.memory",
                "an agent on a model, which has a context to go on from",
                "remove 'memory': a workflow begins anew each turn",
            )
        if agent.memory == "session" and agent.for_each is not None:
            yield Problem(
                f"agent '{name}' has memory: session and for_each",
                f"agents.{name}.memory",
                "an agent with one conversation",
                "run the workflow once per item, each in a session of its own",
            )
        if name in looped and (agent.max_turns or 1) < 2:
            limit = "no max_turns" if agent.max_turns is None else "takes one turn"
            yield Problem(
                f"agent '{name}' has a loop edge from '{looped[name]}' but {limit}",
                f"agents.{name}.max_turns",
                "2 or more",
                f"give '{name}' max_turns: 2 or more",
            )


def _name_problems(spec: WorkflowSpec) -> Iterator[Problem]:
    """Name the models and servers that agents have and the workflow has not."""
    for name, agent in spec.agents.items():
        if agent.workflow is not None:
            yield from _inner_problems(name, agent.workflow)
        elif agent.model not in spec.models:
            expected = listed(spec.models) or "a model under 'models:'"
            yield Problem(
                f"there is no model '{agent.model}'",
                f"agents.{name}.model",
                expected,
                suggest(agent.model, spec.models) or f"declare '{agent.model}' under 'models:'",
            )
        for number, ref in enumerate(agent.tools):
            if ref.server and ref.server not in spec.mcp_servers:
                yield Problem(
                    f"there is no server of tools '{ref.server}'",
                    f"agents.{name}.tools[{number}]",
                    listed(spec.mcp_servers) or "a server under 'mcp_servers:'",
                    suggest(ref.server, spec.mcp_servers)
                    or f"declare '{ref.server}' under 'mcp_servers:'",
                )


def _inner_problems(name: str, inner: WorkflowSpec) -> Iterator[Problem]:
    """What is wrong with a workflow that takes an agent's turns."""
    inside = f"agents.{name}.workflow"
    for agent, one in inner.agents.items():
        if one.memory == "session":
            yield Problem(
                f"agent '{agent}' inside of '{name}' has memory: session",
                f"{inside}.agents.{agent}.memory",
                "run or turn: a session has conversations of the outer workflow's agents",
                f"write memory: run, or have '{agent}' in the outer workflow",
            )
    for problem in validate(inner):
        yield replace(problem, where=f"{inside}.{problem.where}")


def _end_problems(spec: WorkflowSpec) -> Iterator[Problem]:
    for n, edge in enumerate(spec.edges):
        for key, name in (("from", edge.from_), ("to", edge.to)):
            if name not in spec.agents:
                yield Problem(
                    f"there is no agent '{name}'",
                    f"edges[{n}].{key}",
                    listed(spec.agents),
                    suggest(name, spec.agents) or f"declare '{name}' under 'agents:'",
                )


def _edge_problems(spec: WorkflowSpec) -> Iterator[Problem]:
    first: dict[tuple[str, str, str], int] = {}
    for n, edge in enumerate(spec.edges):
        share = spec.share_of(edge)
        known = first.setdefault((edge.from_, edge.to, share), n)
        if known != n:
            yield Problem(
                f"edges[{known}] already shares the {share} of '{edge.from_}' with '{edge.to}'",
                f"edges[{n}]",
                "one edge for each thing shared",
                "remove one of the two, or give them different 'share:'",
            )
        if edge.from_ == edge.to and not edge.loop:
            yield Problem(
                f"the edge goes from '{edge.from_}' to itself",
                f"edges[{n}]",
                "an edge to another agent, or a loop",
                "add 'loop: true' to let the agent go on from its own words",
            )
        sharer = spec.agents.get(edge.from_)
        if edge.share == "output" and sharer is not None and sharer.generate is None:
            yield Problem(
                f"'{edge.from_}' writes nothing (generate: none), so it has no output to share",
                f"edges[{n}].share",
                "prompt or context",
                "use 'share: prompt'",
            )


def _unmarked_cycles(spec: WorkflowSpec, graph: Graph) -> Iterator[Problem]:
    """Name one cycle of each knot of edges that are not loops."""
    forward = forward_graph(graph)
    forward.remove_edges_from(list(nx.selfloop_edges(forward)))
    order = {name: n for n, name in enumerate(spec.agents)}
    for knot in nx.strongly_connected_components(forward):
        if len(knot) < 2:
            continue
        start = _entry(forward, knot, order)
        cycle = _cycle(forward.subgraph(knot), start)
        closing = _edge_index(spec, cycle[-1], start)
        after = sorted(nx.descendants(forward, start) - knot, key=order.__getitem__)
        stuck = f"; {listed(after)} after it could never start either" if after else ""
        yield Problem(
            f"cycle {' -> '.join([*cycle, start])}: none of its agents can start first{stuck}",
            f"edges[{closing}]",
            "'loop: true' on the edge that goes back",
            f"mark edges[{closing}] ({cycle[-1]} -> {start}) with 'loop: true' and give "
            f"'{start}' max_turns",
        )


def _entry(forward: nx.DiGraph[str], knot: set[str], order: dict[str, int]) -> str:
    """Return the agent of a knot where a run would come in: one with an edge from outside."""
    entered = [name for name in knot if any(p not in knot for p in forward.predecessors(name))]
    return min(entered or knot, key=order.__getitem__)


def _cycle(knot: nx.DiGraph[str], start: str) -> list[str]:
    """Return a shortest cycle through ``start``, without its repetition at the end."""
    paths = nx.single_source_shortest_path(knot, start)
    return min((paths[name] for name in knot.predecessors(start)), key=len)


def _edge_index(spec: WorkflowSpec, sharer: str, receiver: str) -> int:
    return next(
        n
        for n, edge in enumerate(spec.edges)
        if (edge.from_, edge.to, edge.loop) == (sharer, receiver, False)
    )


def _idle_loops(spec: WorkflowSpec, graph: Graph) -> Iterator[Problem]:
    knots = enumerate(nx.strongly_connected_components(graph))
    knot_of = {name: n for n, knot in knots for name in knot}
    for n, edge in enumerate(spec.edges):
        known = edge.from_ in knot_of and edge.to in knot_of
        if edge.loop and known and knot_of[edge.from_] != knot_of[edge.to]:
            yield Problem(
                f"'loop: true' closes no cycle: nothing leads from '{edge.to}' back to "
                f"'{edge.from_}'",
                f"edges[{n}].loop",
                "an edge that goes back to an earlier agent",
                "remove 'loop: true', or add the way back",
            )


def to_mermaid(spec: WorkflowSpec) -> str:
    """Draw the workflow as a mermaid flowchart: loops dotted, conditions on their edges."""
    ids = {name: f"a{n}" for n, name in enumerate(spec.agents)}
    lines = ["flowchart LR"]
    for name, agent in spec.agents.items():
        reads = ", reads only" if agent.generate is None else ""
        what = agent.model if agent.workflow is None else f"workflow {agent.workflow.name}"
        label = _lines([name, f"{what}{reads}"])
        lines.append(f'    {ids[name]}["{label}"]')
    for edge in spec.edges:
        if edge.from_ not in ids or edge.to not in ids:
            continue
        parts = [f"{edge.channel}: {spec.share_of(edge)}"]
        parts += [f"when {edge.when}"] if edge.when else []
        arrow = "-.->" if edge.loop else "-->"
        lines.append(f'    {ids[edge.from_]} {arrow}|"{_lines(parts)}"| {ids[edge.to]}')
    return "\n".join(lines) + "\n"


def _lines(parts: Iterable[str]) -> str:
    return "<br/>".join(map(_escape, parts))


def _escape(text: str) -> str:
    """Write characters that mermaid reads as markup by their code."""
    return "".join(
        character if character.isalnum() or character in " _-.,:=/()'" else f"#{ord(character)};"
        for character in " ".join(text.split())
    )
