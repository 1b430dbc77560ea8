"""How many tokens the pieces of a context have, before anything was written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from unspoken.agents.planning.outline import OutlinePiece
from unspoken.agents.prompts.absent import Absent
from unspoken.agents.prompts.jinja import evaluate, references, render
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import UnspokenError

if TYPE_CHECKING:
    from unspoken.agents.models.base import AgentModel


@dataclass(eq=False, kw_only=True)
class PieceTokens:
    """Counts the tokens of pieces.

    Attributes:
        spec: The workflow.
        models: The model of every agent.
        inputs: All of its inputs.
        written: Tokens that each agent writes in a turn or an item.
    """

    spec: WorkflowSpec
    models: Mapping[str, "AgentModel"]
    inputs: Mapping[str, object]
    written: Mapping[str, float]
    _known: dict[tuple[object, ...], float] = field(default_factory=dict)

    @cached_property
    def items(self) -> Mapping[str, Sequence[object]]:
        """The items of agents with ``for_each``; those whose list is not known have none."""
        found = {}
        for name, agent in self.spec.agents.items():
            if agent.for_each is not None:
                try:
                    rows: Any = evaluate(agent.for_each, {"inputs": dict(self.inputs)})
                    found[name] = list(rows)
                except (UnspokenError, TypeError):
                    found[name] = []
        return found

    def of(self, piece: OutlinePiece, reader: str) -> float:
        """Tokens of a piece in the context of an agent; all items of its sharer together."""
        edge = None if piece.edge is None else self.spec.edges[piece.edge]
        times = 1 if edge is None else len(self.items.get(edge.from_, "1"))
        key = piece.key, reader
        if key not in self._known:
            self._known[key] = self._count(piece, reader)
        return times * self._known[key]

    def _count(self, piece: OutlinePiece, reader: str) -> float:
        model, template = self.models[reader], self.models[reader].template
        match piece.key:
            case ("system", system, *_):
                words = None if system is None else self._rendered(str(system), reader)
                return len(model.context_builder.opening(words).ids)
            case ("open", role):
                return len(model.text.encode(template.wrappers[str(role)][0]))
            case ("close", role):
                return len(model.text.encode(template.wrappers[str(role)][1]))
            case ("ask", _):
                return len(model.text.encode(template.prompt))
            case ("output", agent):
                return self.written[str(agent)]
            case ("words", source, owner):
                name = owner[0] if isinstance(owner, tuple) and owner else reader
                return self._words(str(source), str(name), reader)
            case ("reworded", agent, share):
                other = self.spec.agents[str(agent)]
                if share == "prompt":
                    return self._words(other.prompt, str(agent), reader)
                return self.written[str(agent)]
        return 0

    def _words(self, source: str, owner: str, reader: str) -> float:
        """Tokens of a part of a prompt, on average over its owner's items."""
        text = self.models[reader].text
        items: Sequence[object] = [None]
        if owner in self.items and any(read.root == "item" for read in references(source)):
            items = self.items[owner] or [None]
        counts = [len(text.encode_words(self._rendered(source, owner, item))) for item in items]
        return sum(counts) / len(counts)

    def _rendered(self, source: str, owner: str, item: object = None) -> str:
        """A template with what is known; agents that it names have written nothing."""
        absent = {name: Absent() for name in self.spec.agents}
        known = {"inputs": dict(self.inputs), "turn": 1, "item": item}
        try:
            return render(source, {**absent, **known})
        except UnspokenError:  # its turn tells of it, if there is one
            return ""
