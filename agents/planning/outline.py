"""An agent's context before anything ran: pieces that are equal at two agents exactly where their
tokens will be.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from jinja2 import nodes

from unspoken.agents.prompts.jinja import references
from unspoken.agents.prompts.sandbox import environment
from unspoken.agents.spec.spec import WorkflowSpec

__all__ = ["Piece", "outline", "prints_message"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a context.

    Attributes:
        key: Equal for equal tokens.
        label: What it is, for people.
        kind: ``system``, ``turn`` (a turn's opening), ``prompt`` or ``output``.
        edge: Number of the edge that brought it, or None.
    """

    key: tuple[object, ...]
    label: str
    kind: str
    edge: int | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a prompt template: literal words, a whole message (`text` names the agent), or any
    other expression.
    """

    text: str
    message: bool = False
    literal: bool = False


def outline(spec: WorkflowSpec, agent: str) -> tuple[Piece, ...]:
    """The pieces of an agent's first turn, its own words at the end."""
    return tuple(_context(spec, agent, ()))


def _context(spec: WorkflowSpec, agent: str, above: tuple[str, ...]) -> Iterator[Piece]:
    """Pieces of an agent's context; loop edges bring nothing in a first turn."""
    one = spec.agents[agent]
    yield _system(spec, agent)
    mentioned = {reference.root for reference in references(one.prompt)}
    first = _first_edges(spec, agent)
    for number, edge in enumerate(spec.edges):
        quoted = edge.from_ in mentioned and first.get(edge.from_) == number
        if edge.to == agent and not edge.loop and not quoted and edge.from_ not in above:
            yield from _message(spec, number, (*above, agent))
    yield from _turn("user", _prompt(spec, agent, (*above, agent)))
    if one.generate is not None:
        yield from _turn("assistant", iter([_output(agent)]))


def _system(spec: WorkflowSpec, agent: str) -> Piece:
    system = spec.agents[agent].system
    model = repr(spec.models[spec.agents[agent].model])
    if system is None:
        return Piece(("system", None, model), "the template's own opening", "system")
    own = agent if any(r.root != "inputs" for r in references(system)) else ""
    return Piece(("system", system, own), "a system prompt of its own", "system")


def _output(agent: str) -> Piece:
    return Piece(("output", agent), f"what {agent} wrote", "output")


def _turn(role: str, pieces: Iterator[Piece], edge: int | None = None) -> Iterator[Piece]:
    yield Piece(("open", role), f"the start of a turn of the {role}", "turn", edge)
    yield from pieces
    yield Piece(("close", role), f"the end of a turn of the {role}", "turn", edge)


def _prompt(spec: WorkflowSpec, agent: str, above: tuple[str, ...]) -> Iterator[Piece]:
    """A prompt's words, and the messages it quotes."""
    edges = _first_edges(spec, agent)
    prompt = spec.agents[agent].prompt
    private = any(reference.root != "inputs" for reference in references(prompt))
    for index, part in enumerate(_parts(prompt)):
        if part.message and part.text in edges and part.text not in above:
            number = edges[part.text]
            for piece in _words(spec, number, above):
                yield Piece(piece.key, piece.label, piece.kind, number)
        else:
            own = (agent, index) if private and not part.literal else ()
            yield Piece(("words", part.text, own), f"the prompt of {agent}", "prompt")


def _first_edges(spec: WorkflowSpec, agent: str) -> dict[str, int]:
    """Per sharer, the edge whose message a mention of it means in a first turn."""
    edges = reversed(list(enumerate(spec.edges)))
    return {edge.from_: number for number, edge in edges if edge.to == agent and not edge.loop}


def _words(spec: WorkflowSpec, number: int, above: tuple[str, ...]) -> Iterator[Piece]:
    edge = spec.edges[number]
    if spec.share_of(edge) == "prompt":
        yield from _prompt(spec, edge.from_, (*above, edge.from_))
    else:
        yield _output(edge.from_)


def _message(spec: WorkflowSpec, number: int, above: tuple[str, ...]) -> Iterator[Piece]:
    """A message as turns of its own in its receiver's context."""
    edge = spec.edges[number]
    if spec.share_of(edge) == "context":
        inner = list(_context(spec, edge.from_, above))[1:]
        yield from (Piece(piece.key, piece.label, piece.kind, number) for piece in inner)
        return
    for piece in _turn(edge.as_, _words(spec, number, above)):
        yield Piece(piece.key, piece.label, piece.kind, number)


def prints_message(prompt: str, agent: str) -> bool:
    """Whether a prompt prints an agent's whole text anywhere, be it under a condition."""
    printed = (
        item
        for output in environment().parse(prompt).find_all(nodes.Output)
        for item in output.nodes
    )
    return any(
        isinstance(item, nodes.Getattr)
        and item.attr == "text"
        and isinstance(item.node, nodes.Name)
        and item.node.name == agent
        for item in printed
    )


def _parts(prompt: str) -> Iterator[_Part]:
    """A prompt template cut where it prints a whole message."""
    for node in environment().parse(prompt).body:
        if not isinstance(node, nodes.Output):
            yield _Part(repr(node))
            continue
        for item in node.nodes:
            match item:
                case nodes.TemplateData(data=data):
                    yield _Part(data, literal=True)
                case nodes.Getattr(node=nodes.Name(name=name), attr="text"):
                    yield _Part(name, message=True)
                case _:
                    yield _Part(repr(item))
