"""A plan's token counts where only some of the inputs are known."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from unspoken.agents.planner import Plan, _known_tokens
from unspoken.agents.spec import WorkflowSpec
from unspoken.agents.templates import references

if TYPE_CHECKING:
    from unspoken.agents.model import LocalModel

__all__ = ["with_known_tokens"]


def with_known_tokens(
    plan: Plan,
    spec: WorkflowSpec,
    models: Mapping[str, "LocalModel"],
    known: Mapping[str, object],
) -> Plan:
    """The plan with the tokens of every message that reads none but known inputs.

    Args:
        plan: A plan that was made without inputs.
        spec: Its workflow.
        models: The loaded model of every agent, by agent.
        known: The inputs at hand.
    """
    edges = []
    for edge in plan.edges:
        if _inputs_of(spec.agents[edge.sharer].prompt) <= known.keys():
            tokens = _known_tokens(spec, spec.edges[edge.number], models[edge.sharer], known)
            edge = replace(edge, tokens=tokens)
        edges.append(edge)
    return replace(plan, edges=tuple(edges))


def _inputs_of(prompt: str) -> set[str | None]:
    """Names of the inputs that a template reads; None is one whose name only a run will tell."""
    return {one.attribute for one in references(prompt) if one.root == "inputs"}
