"""Several messages in one context: how much of each is computed again.

One spliced message costs little. Several cost more than each alone, since none of them has looked
at the others, and it is their first tokens that feel it most: the page on benchmarks has the
figures. What an agent wrote is short beside what it read. To read its first tokens again takes a
small part of the time that it took to write them.
"""

from collections.abc import Mapping
from dataclasses import replace

from unspoken.agents.planning.choice import ChannelChoice
from unspoken.agents.spec.repair import SINK, Repair
from unspoken.agents.spec.spec import EdgeSpec, WorkflowSpec


def settle_splices(
    spec: WorkflowSpec, choices: Mapping[int, ChannelChoice]
) -> dict[int, ChannelChoice]:
    """The choices, those changed that would splice several messages into one context.

    Of each message the first tokens are computed again, as many as its edge's `read_again` says.
    An output that is no longer than that goes by text. An edge that names its channel or its repair
    keeps it.

    Args:
        spec: The workflow.
        choices: What was chosen for each edge by itself.
    """
    spliced: dict[str, list[int]] = {}
    for number, choice in choices.items():
        edge = spec.edges[number]
        if choice.mode == "splice" and not edge.loop:
            spliced.setdefault(edge.to, []).append(number)
    settled = dict(choices)
    for numbers in spliced.values():
        for number in numbers if len(numbers) > 1 else ():
            settled[number] = _settled(spec, spec.edges[number], choices[number], len(numbers))
    return settled


def _settled(
    spec: WorkflowSpec, edge: EdgeSpec, choice: ChannelChoice, beside: int
) -> ChannelChoice:
    if edge.channel != "auto" or edge.repair != Repair() or edge.read_again <= SINK:
        return choice
    longest = _longest_output(spec, edge)
    if longest is not None and longest <= edge.read_again and edge.fallback == "text":
        evidence = f"one of {beside} messages that would be spliced, at most {longest} tokens long"
        reason = f"same weights, but {evidence}: it is read again"
        advice = f"read_again: {longest - 1} or less would splice it, further from the text"
        return replace(choice, mode="text", reason=reason, evidence=evidence, advice=advice)
    again = f"its first {edge.read_again} tokens are computed again"
    reason = f"{choice.reason}; one of {beside} such messages, so {again}"
    return replace(choice, reason=reason, sink=edge.read_again)


def _longest_output(spec: WorkflowSpec, edge: EdgeSpec) -> int | None:
    """Most tokens of an output; None for another message, whose length nothing bounds."""
    generate = spec.agents[edge.from_].generate
    if generate is None or spec.share_of(edge) != "output":
        return None
    return generate.max_new_tokens
