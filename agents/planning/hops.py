"""How many inexact hand-overs in a row reach an edge, and text where they are too many.

A state that was spliced or made by a bridge differs a little from what its reader would have
computed. Whoever takes it over in the same way adds to that. The page on benchmarks says what a row
of them costs. An edge's `max_inexact` bounds them: the message after so many goes by text. Its
reader computes it anew, and the count begins at none.

A plan counts along the edges that are no loops. What a loop or a channel of a user's own adds is
counted during the run, by the states themselves.
"""

from collections.abc import Mapping

import networkx as nx

from unspoken.agents.planning.choice import ChannelChoice
from unspoken.agents.spec.graph import build_graph, forward_graph
from unspoken.agents.spec.spec import EdgeSpec, WorkflowSpec
from unspoken.channels.base import inexact_in_a_row


def bound_hops(
    spec: WorkflowSpec, choices: Mapping[int, ChannelChoice]
) -> tuple[dict[int, ChannelChoice], dict[int, int]]:
    """The choices, those changed that would be one inexact hand-over too many, and all counts.

    Args:
        spec: The workflow.
        choices: What was chosen for each edge by itself.

    Returns:
        The choices and the inexact hand-overs in a row, this one included, both by edge.
    """
    settled, hops = dict(choices), dict.fromkeys(choices, 0)
    reached = dict.fromkeys(spec.agents, 0)
    for name in nx.lexicographical_topological_sort(forward_graph(build_graph(spec))):
        into = [number for number, edge in enumerate(spec.edges) if edge.to == name]
        for number in into:
            edge = spec.edges[number]
            behind = 0 if edge.loop else reached[edge.from_]
            if _too_many(edge, settled[number], behind):
                settled[number] = _by_text(edge, settled[number], behind)
            if settled[number].channel != "text":
                hops[number] = behind + _adds(edge, settled[number])
        reached[name] = max((hops[n] for n in into if not spec.edges[n].loop), default=0)
    return settled, hops


def _too_many(edge: EdgeSpec, choice: ChannelChoice, behind: int) -> bool:
    """Whether a hand-over is one more than its edge takes; 0 takes no inexact state at all."""
    none = edge.max_inexact == 0 and behind > 0 and choice.channel != "text"
    return none or (_adds(edge, choice) and behind >= edge.max_inexact)


def _adds(edge: EdgeSpec, choice: ChannelChoice) -> bool:
    """Whether a hand-over makes a state less exact than it was."""
    if choice.custom is not None or choice.channel == "text" or choice.unfitted:
        return False
    return choice.mode != "continuation" or edge.codec != "raw"


def _by_text(edge: EdgeSpec, choice: ChannelChoice, behind: int) -> ChannelChoice:
    row = inexact_in_a_row(edge.max_inexact)
    return ChannelChoice(
        "text",
        f"{row}: {edge.to} reads it again, so that they do not pile up",
        expected=f"at most {edge.max_inexact} inexact hand-overs in a row, as max_inexact says",
        advice=f"max_inexact: {behind + 1} on this edge would be a {choice.mode}",
        evidence=row,
    )
