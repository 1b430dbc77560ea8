"""Which message stands where in an agent's context: one rule for planning and for composing.

The planner compares contexts before any words exist, and the composer builds them from words. Both
ask here, so that a plan speaks of the context that a turn will have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unspoken.agents.prompts.jinja import references


@dataclass(frozen=True, slots=True, kw_only=True)
class InEdge:
    """What the place of a message depends on.

    Attributes:
        number: Number of its edge.
        sharer: The agent that it comes from.
        one_turn: Whether it is the words of one turn: no other keeps its tokens inside a prompt.
        fresh: Whether it is new to the context; the words of another stand there already.
    """

    number: int
    sharer: str
    one_turn: bool
    fresh: bool = True


@dataclass(frozen=True, slots=True)
class PartOrder:
    """The places of messages in a context. A message named nowhere here brings nothing.

    Attributes:
        turns: Edges whose messages become turns of their own, in this order, before the prompt.
        quoted: Per agent, the edge whose message the agent's name means in the prompt.
        tokens_kept: Edges whose messages keep their tokens where the prompt prints their text.
    """

    turns: tuple[int, ...]
    quoted: Mapping[str, int]
    tokens_kept: frozenset[int]


def order_of_parts(
    prompt: str, messages: Sequence[InEdge], leading: Sequence[int] = ()
) -> PartOrder:
    """The places of messages around and inside a prompt.

    A message whose agent's text the prompt mentions stands where it is mentioned. The others become
    turns before the prompt; to ask whether an agent is defined is no mention. Of several messages
    of one agent, a mention means the first.

    Args:
        prompt: The receiver's prompt template.
        messages: The messages of the turn, in the order of the edges.
        leading: Edges whose messages come first where they are turns of their own, in this order.
    """
    first: dict[str, InEdge] = {}
    for message in messages:
        first.setdefault(message.sharer, message)
    mentioned = {read.root for read in references(prompt) if read.attribute is not None}
    inside = {message.number for name, message in first.items() if name in mentioned}
    turns = [item.number for item in messages if item.fresh and item.number not in inside]
    ahead = [number for number in leading if number in turns]
    return PartOrder(
        (*ahead, *(number for number in turns if number not in ahead)),
        {name: message.number for name, message in first.items()},
        frozenset(item.number for item in first.values() if item.fresh and item.one_turn),
    )
