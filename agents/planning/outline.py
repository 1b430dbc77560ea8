"""An agent's context before anything ran, in pieces that are equal where their tokens will be."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import islice

from unspoken.agents.prompts.chat_template import ChatTemplate
from unspoken.agents.prompts.jinja import printed_message, references
from unspoken.agents.prompts.lexer import nesting, scan
from unspoken.agents.prompts.order import InEdge, PartOrder, order_of_parts
from unspoken.agents.spec.spec import WorkflowSpec

MOST_PIECES = 1000


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


class Outlines:
    """The outlines of all agents of a workflow; each is made once, after those that it holds.

    A prompt that quotes another twice doubles it, so an outline is cut after `MOST_PIECES`.

    Args:
        spec: A valid workflow.
        templates: The chat template of every agent; without one, turns are as the spec alone says.
    """

    def __init__(
        self, spec: WorkflowSpec, templates: Mapping[str, ChatTemplate] | None = None
    ) -> None:
        self._spec, self._templates = spec, templates or {}
        self._inbound: dict[str, list[int]] = {name: [] for name in spec.agents}
        for number, edge in enumerate(spec.edges):
            if not edge.loop:
                self._inbound[edge.to].append(number)
        sharers = {
            name: {spec.edges[number].from_ for number in numbers}
            for name, numbers in self._inbound.items()
        }
        self._leading: dict[str, tuple[int, ...]] = {}
        self._prompts: dict[str, tuple[OutlinePiece, ...]] = {}
        self._contexts: dict[str, tuple[OutlinePiece, ...]] = {}
        self._later: dict[str, tuple[OutlinePiece, ...]] = {}
        for name in TopologicalSorter(sharers).static_order():
            if spec.agents[name].order == "auto":
                self._leading[name] = self._continuing(name)
            self._prompts[name] = self._cut(name, self._prompt(name, self._order(name)))
            self._contexts[name] = self._cut(name, self._context(name))

    def __getitem__(self, agent: str) -> tuple[OutlinePiece, ...]:
        """The pieces of an agent's first turn, its own words at the end."""
        return self._contexts[agent]

    def later(self, agent: str) -> tuple[OutlinePiece, ...]:
        """The pieces of a turn that loops have started, less what the agent wrote before.

        All loops bring their messages, as they stand after the first turns of their sharers.
        """
        if agent not in self._later:
            order = self._order(agent, loops=True)
            prompt = self._prompt(agent, order)
            pieces = self._read(agent, order, prompt)
            loops = [n for n, edge in enumerate(self._spec.edges) if edge.loop and edge.to == agent]
            self._later[agent] = self._cut(agent, pieces, loops)
        return self._later[agent]

    @property
    def leading(self) -> Mapping[str, tuple[int, ...]]:
        """Edges whose messages come first, by agent; only where ``order: auto`` finds some."""
        return {name: numbers for name, numbers in self._leading.items() if numbers}

    def turns(self, agent: str) -> tuple[int, ...]:
        """Edges whose messages are turns of their own in an agent's first turn, in order."""
        return self._order(agent).turns

    def _continuing(self, agent: str) -> tuple[int, ...]:
        """Edges whose messages continue each other from the start of an agent's context.

        Of those that could come next, the one that stands behind most of its sharer's context does:
        it has most tokens that need not be computed.
        """
        chosen: list[int] = []
        context = [_system(self._spec, agent).key]
        while True:
            candidates = {
                number: [piece.key for piece in self._message(number)]
                for number in self._order(agent).turns
                if number not in chosen and self._brings_state(number)
            }
            fitting = [
                number for number, keys in candidates.items() if self._opens(number, context + keys)
            ]
            if not fitting:
                return tuple(chosen)
            best = max(fitting, key=lambda number: len(candidates[number]))
            chosen.append(best)
            context += candidates[best]

    def _opens(self, number: int, keys: list[tuple[object, ...]]) -> bool:
        """Whether the context of an edge's sharer begins with these pieces."""
        theirs = self._contexts[self._spec.edges[number].from_]
        return keys == [piece.key for piece in theirs[: len(keys)]]

    def _brings_state(self, number: int) -> bool:
        edge = self._spec.edges[number]
        return edge.channel != "text" and self._spec.agents[edge.from_].for_each is None

    def _cut(
        self, agent: str, pieces: Iterator[OutlinePiece], loops: Sequence[int] = ()
    ) -> tuple[OutlinePiece, ...]:
        """Some pieces, and one for each message that may begin after them."""
        shown = tuple(islice(pieces, MOST_PIECES))
        if next(pieces, None) is None:
            return shown
        seen = {piece.edge for piece in shown}
        label = f"more than {MOST_PIECES} parts of {agent}"
        rest = [number for number in (*self._inbound[agent], *loops) if number not in seen]
        return (*shown, *(OutlinePiece(("more", agent, n), label, n) for n in (None, *rest)))

    def _context(self, agent: str) -> Iterator[OutlinePiece]:
        yield from self._read(agent, self._order(agent), self._prompts[agent])
        if self._spec.agents[agent].generate is not None:
            yield from self._own_turn(agent)

    def _read(
        self, agent: str, order: PartOrder, prompt: Iterable[OutlinePiece]
    ) -> Iterator[OutlinePiece]:
        """What an agent reads in a turn that it begins anew."""
        yield _system(self._spec, agent)
        for number in order.turns:
            yield from self._message(number)
        yield from _turn("user", prompt)

    def _own_turn(self, agent: str) -> Iterator[OutlinePiece]:
        """What an agent writes, opened as its template asks for it, thoughts first."""
        opened, *rest = _turn("assistant", [*self._thought(agent), _output(agent)])
        template = self._templates.get(agent)
        if template is not None and _asks_otherwise(template):
            yield OutlinePiece(("ask", agent), f"what asks {agent} for its words")
        else:
            yield opened
        yield from rest

    def _thought(self, agent: str) -> list[OutlinePiece]:
        template = self._templates.get(agent)
        if template is None or not template.thinks:
            return []
        return [OutlinePiece(("thoughts", agent), f"what {agent} thought")]

    def _handed_on(self, number: int, pieces: Iterable[OutlinePiece]) -> Iterator[OutlinePiece]:
        """Pieces of a sharer's context as its receiver has them."""
        drops = self._spec.drops_thoughts(self._spec.edges[number])
        sharer = self._spec.edges[number].from_
        for piece in pieces:
            if piece.key[0] == "ask":
                yield OutlinePiece(("open", "assistant"), piece.label)
            elif not (drops and piece.key == ("thoughts", sharer)):
                yield piece

    def _order(self, agent: str, *, loops: bool = False) -> PartOrder:
        """Where messages stand in an agent's turn; to its first, loop edges bring nothing."""
        spec, messages = self._spec, []
        for number, edge in enumerate(spec.edges):
            if edge.to != agent or (edge.loop and not loops):
                continue
            each = spec.agents[edge.from_].for_each is not None
            one_turn = spec.share_of(edge) != "context" and not each
            messages.append(InEdge(number=number, sharer=edge.from_, one_turn=one_turn))
        return order_of_parts(spec.agents[agent].prompt, messages, self._leading.get(agent, ()))

    def _prompt(self, agent: str, order: PartOrder) -> Iterator[OutlinePiece]:
        """A prompt's words, and the messages it quotes."""
        prompt = self._spec.agents[agent].prompt
        private = any(reference.root != "inputs" for reference in references(prompt))
        for index, part in enumerate(_parts(prompt)):
            number = order.quoted.get(part.text) if part.message else None
            if number is None:
                reader = (agent, index) if private and not part.literal else ()
                yield OutlinePiece(("words", part.text, reader), f"the prompt of {agent}")
            elif number in order.tokens_kept:
                yield from _brought(number, self._words(number))
            else:
                share = self._spec.share_of(self._spec.edges[number])
                yield OutlinePiece(("reworded", part.text, share), f"the words of {part.text}")

    def _words(self, number: int) -> Iterable[OutlinePiece]:
        edge = self._spec.edges[number]
        shares_prompt = self._spec.share_of(edge) == "prompt"
        if shares_prompt:
            return self._prompts[edge.from_]
        return self._handed_on(number, [*self._thought(edge.from_), _output(edge.from_)])

    def _message(self, number: int) -> Iterator[OutlinePiece]:
        """A message as turns of its own in its receiver's context."""
        edge = self._spec.edges[number]
        if self._spec.share_of(edge) == "context":
            return _brought(number, self._handed_on(number, self._contexts[edge.from_][1:]))
        return _brought(number, _turn(edge.as_, self._words(number)))


def _system(spec: WorkflowSpec, agent: str) -> OutlinePiece:
    system = spec.agents[agent].system
    model = repr((spec.models.get(spec.agents[agent].model), spec.agents[agent].template))
    if system is None:
        return OutlinePiece(("system", None, model), "the template's own opening")
    reader = agent if any(r.root != "inputs" for r in references(system)) else ""
    return OutlinePiece(("system", system, reader), "a system prompt of its own")


def _asks_otherwise(template: ChatTemplate) -> bool:
    """Whether a template opens the turn that is to be written unlike one that was."""
    prompt = template.prompt
    if template.thoughts is not None and template.thoughts.opened:
        prompt = prompt.rpartition(template.thoughts.opening)[0] or prompt
    return prompt != template.wrappers["assistant"][0]


def _output(agent: str) -> OutlinePiece:
    return OutlinePiece(("output", agent), f"what {agent} wrote")


def _turn(role: str, pieces: Iterable[OutlinePiece]) -> Iterator[OutlinePiece]:
    yield OutlinePiece(("open", role), f"the start of a turn of the {role}")
    yield from pieces
    yield OutlinePiece(("close", role), f"the end of a turn of the {role}")


def _brought(number: int, pieces: Iterable[OutlinePiece]) -> Iterator[OutlinePiece]:
    return (OutlinePiece(piece.key, piece.label, number) for piece in pieces)


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
