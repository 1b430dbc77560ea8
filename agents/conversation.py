"""From messages and a prompt to the turns of an agent's context, and from its turns to the message it publishes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from unspoken.agents.compose import Composed, Composer, Quote, Turn
from unspoken.agents.spec import EdgeSpec, Share
from unspoken.agents.templates import TextRef, references, render_parts
from unspoken.agents.tokens import TokenCodec
from unspoken.channels.base import Channel
from unspoken.channels.geometry import ModelIdentity
from unspoken.channels.message import Message, Segment

__all__ = ["Incoming", "Prepared", "prepare_turn", "publish"]


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message at hand for a turn.

    Attributes:
        number: Number of its edge.
        edge: The edge.
        channel: What carries it.
        message: The message.
        fresh: Whether it is new to the receiver's context; one that is not has its words there already.
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

    context: Composed
    placed: tuple[Incoming, ...]


def prepare_turn(
    composer: Composer,
    prompt: str,
    incoming: Sequence[Incoming],
    variables: Mapping[str, object],
    *,
    system: str | None,
    earlier: Composed | None,
) -> Prepared:
    """Compose an agent's next turn.

    A message whose agent the prompt mentions stands where it is mentioned; the others become turns of their own, before
    the prompt, in the order of the edges. Of several messages of one agent, a mention means the first.

    Args:
        composer: Composer of the agent's model.
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
    turns: list[Turn] = []
    for one in incoming:
        if one.fresh and not (one.edge.from_ in mentioned and by_agent[one.edge.from_] is one):
            turns += _turns(one)
    turns.append(Turn("user", tuple(pieces)))
    context = composer.compose(turns, system=system, earlier=earlier)
    return Prepared(context, tuple(one for one in incoming if one.fresh))


def _turns(one: Incoming) -> list[Turn]:
    message = one.message
    return [
        Turn(segment.role if message.whole else one.edge.as_, (Quote(message, segment),))
        for segment in message.segments
    ]


def _quoted(one: Incoming) -> list[str | Quote]:
    """A message inside a prompt: its tokens where it is one turn's words and new, else its words."""
    if not one.fresh or one.message.whole or len(one.message.segments) != 1:
        return [one.message.text]
    return [Quote(one.message, one.message.segments[0])]


def publish(
    sharer: str,
    share: Share,
    context: Composed,
    prompt_at: int,
    identity: ModelIdentity,
    codec: TokenCodec | None = None,
) -> Message:
    """The message of a finished turn, without its state.

    Args:
        sharer: Name of the agent.
        share: What to publish.
        context: The agent's context, its last turn closed.
        prompt_at: Index of the prompt's segment in the context.
        identity: Identity of the agent's model.
        codec: Its tokenizer, where the message needs its tokens' character ends; composed turns mostly have them.
    """
    segments = context.segments
    match share:
        case "output":
            chosen: tuple[Segment, ...] = (segments[-1],)
        case "prompt":
            chosen = (segments[prompt_at],)
        case "context":
            chosen = tuple(segment for segment in segments if segment.role != "system")
    if codec is not None:
        chosen = tuple(_with_ends(segment, codec) for segment in chosen)
    end = chosen[-1].position + len(chosen[-1].ids)
    return Message(sharer, chosen, share == "context", context.ids[:end], identity)


def _with_ends(segment: Segment, codec: TokenCodec) -> Segment:
    if len(segment.ends) == len(segment.words):
        return segment
    return replace(segment, ends=codec.ends(segment.words, segment.text))
