"""An agent's context before anything ran, in pieces that are equal where their tokens will be."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from unspoken.agents.prompts.jinja import printed_message, references
from unspoken.agents.prompts.lexer import nesting, scan
from unspoken.agents.prompts.order import InEdge, PartOrder, order_of_parts
from unspoken.agents.spec.spec import WorkflowSpec

__all__ = ["OutlinePiece", "outline", "prints_message"]


@dataclass(frozen=True, slots=True)
class OutlinePiece:
    """A stretch of a context.

    Attributes:
        key: Equal for equal tokens; what kind of stretch it is, and what makes it so.
        label: What it is, for people.
        edge: Number of the edge that brought it, or None.
    """

    key: tuple[object, ...]
    label: str
    edge: int | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a prompt: literal words, a whole message of agent `text`, or an expression."""

    text: str
    message: bool = False
    literal: bool = False


def outline(spec: WorkflowSpec, agent: str) -> tuple[OutlinePiece, ...]:
    """The pieces of an agent's first turn, its own words at the end."""
    return tuple(_context(spec, agent))


def _context(spec: WorkflowSpec, agent: str) -> Iterator[OutlinePiece]:
    yield _system(spec, agent)
    for number in _order(spec, agent).turns:
        yield from _message(spec, number)
    yield from _turn("user", _prompt(spec, agent))
    if spec.agents[agent].generate is not None:
        yield from _turn("assistant", [_output(agent)])


def _order(spec: WorkflowSpec, agent: str) -> PartOrder:
    """Where messages stand in an agent's first turn, to which loop edges bring nothing."""
    messages = [
        InEdge(
            number=number,
            sharer=edge.from_,
            one_turn=spec.share_of(edge) != "context" and spec.agents[edge.from_].for_each is None,
        )
        for number, edge in enumerate(spec.edges)
        if edge.to == agent and not edge.loop
    ]
    return order_of_parts(spec.agents[agent].prompt, messages)


def _system(spec: WorkflowSpec, agent: str) -> OutlinePiece:
    system = spec.agents[agent].system
    model = repr(spec.models[spec.agents[agent].model])
    if system is None:
        return OutlinePiece(("system", None, model), "the template's own opening")
    reader = agent if any(r.root != "inputs" for r in references(system)) else ""
    return OutlinePiece(("system", system, reader), "a system prompt of its own")


def _output(agent: str) -> OutlinePiece:
    return OutlinePiece(("output", agent), f"what {agent} wrote")


def _turn(role: str, pieces: Iterable[OutlinePiece]) -> Iterator[OutlinePiece]:
    yield OutlinePiece(("open", role), f"the start of a turn of the {role}")
    yield from pieces
    yield OutlinePiece(("close", role), f"the end of a turn of the {role}")


def _prompt(spec: WorkflowSpec, agent: str) -> Iterator[OutlinePiece]:
    """A prompt's words, and the messages it quotes."""
    order = _order(spec, agent)
    prompt = spec.agents[agent].prompt
    private = any(reference.root != "inputs" for reference in references(prompt))
    for index, part in enumerate(_parts(prompt)):
        number = order.quoted.get(part.text) if part.message else None
        if number is None:
            reader = (agent, index) if private and not part.literal else ()
            yield OutlinePiece(("words", part.text, reader), f"the prompt of {agent}")
        elif number in order.tokens_kept:
            yield from _brought(number, _words(spec, number))
        else:
            share = spec.share_of(spec.edges[number])
            yield OutlinePiece(("reworded", part.text, share), f"the words of {part.text}")


def _words(spec: WorkflowSpec, number: int) -> Iterable[OutlinePiece]:
    edge = spec.edges[number]
    shares_prompt = spec.share_of(edge) == "prompt"
    return _prompt(spec, edge.from_) if shares_prompt else [_output(edge.from_)]


def _message(spec: WorkflowSpec, number: int) -> Iterator[OutlinePiece]:
    """A message as turns of its own in its receiver's context."""
    edge = spec.edges[number]
    if spec.share_of(edge) == "context":
        return _brought(number, list(_context(spec, edge.from_))[1:])
    return _brought(number, _turn(edge.as_, _words(spec, number)))


def _brought(number: int, pieces: Iterable[OutlinePiece]) -> Iterator[OutlinePiece]:
    return (replace(piece, edge=number) for piece in pieces)


def prints_message(prompt: str, agent: str) -> bool:
    """Whether a prompt prints an agent's whole text anywhere, be it under a condition."""
    return any(printed_message(tag) == agent for tag in scan(prompt))


def _parts(prompt: str) -> Iterator[_Part]:
    """A prompt template cut where it prints a whole message.

    What stands under a condition or in a loop is one part with it: it may be printed or not.
    """
    tags = scan(prompt)
    block = ""
    for tag, (depth, _) in zip(tags, nesting(tags), strict=True):
        if block or depth:
            block += tag.text
            if not depth:
                yield _Part(block)
                block = ""
        elif message := printed_message(tag):
            yield _Part(message, message=True)
        elif tag.opener != "{#":
            yield _Part(tag.text, literal=not tag.opener)
