"""From messages and a prompt to the turns of an agent's context, and from its turns to the message
it publishes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unspoken.agents.prompts.context import ChatTurn, Context, ContextBuilder, Quote
from unspoken.agents.prompts.jinja import TextRef, references, render_parts
from unspoken.agents.spec.problems import listed, suggest
from unspoken.agents.spec.spec import EdgeSpec, WorkflowSpec
from unspoken.channels.base import Channel
from unspoken.channels.errors import InputError
from unspoken.channels.message import Message

if TYPE_CHECKING:
    from unspoken.agents.models.model import LocalModel

__all__ = [
    "Incoming",
    "Prepared",
    "check_received",
    "prepare_turn",
]


def check_received(
    spec: WorkflowSpec, models: Mapping[str, "LocalModel"], received: Mapping[str, Message]
) -> None:
    """Refuse a message that the agent of its name cannot have published.

    Raises:
        InputError: There is no such agent, or its edges share something else.
        IdentityMismatch: Another model made it.
    """
    for name, message in received.items():
        if name not in spec.agents:
            raise InputError(
                f"a message was received for {name!r}, which is no agent",
                expected=listed(spec.agents),
                fix=suggest(name, spec.agents),
            )
        models[name].identity.require(message.identity, f"the message received for {name!r}")
        if message.state is not None:
            message.identity.require(message.state.identity, f"the state received for {name!r}")
            message.state.check(models[name].geometry, models[name].dtype)
        for edge in spec.edges:
            share = spec.share_of(edge)
            if edge.from_ == name and (share == "context") != message.whole:
                travels = "whole turns" if message.whole else "words"
                raise InputError(
                    f"the message received for {name!r} holds {travels}, and its edge to {edge.to} "
                    f"shares {share}",
                    expected="a message published as the edge shares it",
                    fix=f"give the edge share: {'context' if message.whole else 'prompt'}",
                )


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message at hand for a turn.

    Attributes:
        number: Number of its edge.
        edge: The edge.
        channel: What carries it.
        message: The message.
        fresh: Whether it is new to the receiver's context; one that is not has its words there
            already.
    """

    number: int
    edge: EdgeSpec
    channel: Channel
    message: Message
    fresh: bool


@dataclass(frozen=True, slots=True)
class Prepared:
    """A turn's context, and which messages have a place in it.

    Attributes:
        context: The composed context.
        placed: The messages to carry into it.
    """

    context: Context
    placed: tuple[Incoming, ...]


def prepare_turn(
    composer: ContextBuilder,
    prompt: str,
    incoming: Sequence[Incoming],
    variables: Mapping[str, object],
    *,
    system: str | None,
    earlier: Context | None,
) -> Prepared:
    """Compose an agent's next turn.

    A message whose agent the prompt mentions stands where it is mentioned; the others become turns
    of their own, before the prompt, in the order of the edges. Of several messages of one agent, a
    mention means the first.

    Args:
        builder: Context builder of the agent's model.
        prompt: The agent's prompt template.
        incoming: Messages at hand, in the order of the edges.
        variables: What templates may read besides the agents.
        system: The rendered system prompt.
        earlier: The agent's context so far.
    """
    mentioned = {reference.root for reference in references(prompt)}
    by_agent: dict[str, Incoming] = {}
    for one in incoming:
        by_agent.setdefault(one.edge.from_, one)
    names = {name: {"text": TextRef(one.message.text, name)} for name, one in by_agent.items()}
    absent: dict[str, object] = {name: {} for name in mentioned - set(names) - set(variables)}
    parts = render_parts(prompt, {**absent, **variables, **names})
    pieces: list[str | Quote] = []
    for part in parts:
        pieces += _quoted(by_agent[part.agent]) if isinstance(part, TextRef) else [part]
    turns: list[ChatTurn] = []
    for one in incoming:
        if one.fresh and not (one.edge.from_ in mentioned and by_agent[one.edge.from_] is one):
            turns += _turns(one)
    turns.append(ChatTurn("user", tuple(pieces)))
    context = composer.compose(turns, system=system, earlier=earlier)
    return Prepared(context, tuple(one for one in incoming if one.fresh))


def _turns(one: Incoming) -> list[ChatTurn]:
    message = one.message
    return [
        ChatTurn(segment.role if message.whole else one.edge.as_, (Quote(message, segment),))
        for segment in message.segments
    ]


def _quoted(one: Incoming) -> list[str | Quote]:
    """A message inside a prompt: its tokens where it is one turn's words and new, else its words."""
    if not one.fresh or one.message.whole or len(one.message.segments) != 1:
        return [one.message.text]
    return [Quote(one.message, one.message.segments[0])]
