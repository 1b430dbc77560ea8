"""The four workflows that every side runs: ours, and the same turns as token ids.

A turn's prompt is ids, in which stand the ids that other turns write. They are read off our own
composition: each agent is composed once over answers of marks, which no tokenizer gives, and where
the marks come out an answer stands.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from unspoken.agents.agent import Agent
from unspoken.agents.bench.engine.panel import PROMPT, TASKS
from unspoken.agents.bench.engine.team import QUESTIONS, STEPS, exactly
from unspoken.agents.engines.base import Inbound
from unspoken.agents.models.model import LocalModel
from unspoken.agents.planning.planner import plan_workflow
from unspoken.agents.prompts.context import Context
from unspoken.agents.runtime.inbox import Prepared, prepare_turn
from unspoken.agents.runtime.outbox import publish
from unspoken.agents.workflow import Workflow
from unspoken.channels.message import Segment
from unspoken.channels.same_model import SameModelCacheChannel
from unspoken.channels.text import TextChannel

__all__ = [
    "CHAIN",
    "DOCUMENTS",
    "FAN_IN",
    "FAN_OUT",
    "READER",
    "WARM_UP",
    "WORKFLOWS",
    "Turn",
    "turns_of",
]

READER, CHAIN = "reader_solver", "chain_of_four"
FAN_OUT, FAN_IN, WARM_UP = "fan_out_of_eight", "fan_in_of_four", "warm_up"

DOCUMENTS: Mapping[str, int] = {READER: 1024, CHAIN: 1024, FAN_OUT: 512, FAN_IN: 512, WARM_UP: 64}
"""Tokens of the document that each workflow reads."""

MARK = 1 << 24
"""The first of the marks: ids beyond every vocabulary."""

DOCUMENT = "{{ inputs.document }}"


def _reader(model: LocalModel) -> Agent:
    return Agent("reader", model, prompt=DOCUMENT, generate=None)


def _solvers(size: int, model: LocalModel, tokens: int) -> Workflow:
    reader = _reader(model)
    solvers = [
        Agent(f"solver_{number}", model, prompt=question, generate=exactly(tokens))
        for number, question in enumerate(QUESTIONS[:size])
    ]
    flow = Workflow("solvers", [reader, *solvers])
    for solver in solvers:
        flow.connect(reader, solver)
    return flow


def _chain(model: LocalModel, tokens: int) -> Workflow:
    prompts = (f"{DOCUMENT}\n\n{STEPS[0]}", *STEPS[1:])
    agents = [
        Agent(f"agent_{number}", model, prompt=prompt, generate=exactly(tokens))
        for number, prompt in enumerate(prompts)
    ]
    flow = Workflow("chain", agents)
    for sharer, receiver in pairwise(agents):
        flow.connect(sharer, receiver, SameModelCacheChannel(share="context"))
    return flow


def _panel(model: LocalModel, tokens: int) -> Workflow:
    reader = _reader(model)
    writers = [
        Agent(f"writer_{number}", model, prompt=task, generate=exactly(tokens))
        for number, task in enumerate(TASKS)
    ]
    judge = Agent("judge", model, prompt=PROMPT, generate=exactly(tokens))
    flow = Workflow("panel", [reader, *writers, judge])
    for agent in (*writers, judge):
        flow.connect(reader, agent)
    for writer in writers:
        flow.connect(writer, judge)
    return flow


WORKFLOWS: Mapping[str, Callable[[LocalModel, int], Workflow]] = {
    READER: partial(_solvers, 1),
    CHAIN: _chain,
    FAN_OUT: partial(_solvers, 8),
    FAN_IN: _panel,
    WARM_UP: partial(_solvers, 2),
}
"""Makes each workflow of a model whose agents write so many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A turn as every side is told of it.

    Attributes:
        name: The agent.
        after: Agents whose messages it reads.
        parts: Its prompt: ids, and names of turns whose written ids stand there.
        tokens: How many tokens it writes; 0 of a reader.
        continues: The turn whose whole context its prompt begins with; None where there is none.
        said: The words of its own prompt.
    """

    name: str
    after: tuple[str, ...]
    parts: tuple[tuple[int, ...] | str, ...]
    tokens: int
    continues: str | None
    said: str

    def length(self) -> int:
        """Tokens of its prompt, where all that it reads writes as many tokens as it does."""
        return sum(self.tokens if isinstance(part, str) else len(part) for part in self.parts)

    def as_data(self) -> dict[str, Any]:
        """The same for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def turns_of(flow: Workflow, model: LocalModel, document: str, tokens: int) -> list[Turn]:
    """The turns of a workflow of one model, in an order in which they can run.

    Args:
        flow: The workflow; each agent has one turn, and is declared after those that it reads.
        model: Its model.
        document: Its input.
        tokens: How many tokens each agent writes that writes.
    """
    plan = plan_workflow(flow.spec, dict.fromkeys(flow.spec.agents, model))
    contexts: dict[str, Context] = {}
    turns: list[Turn] = []
    for number, (name, agent) in enumerate(flow.spec.agents.items()):
        inbound = list(_inbound(flow, model, name, contexts))
        prepared = prepare_turn(
            model.context_builder,
            agent.prompt or "",
            inbound,
            {"inputs": {"document": document}},
            system=None,
            earlier=None,
            leading=plan.leading.get(name, ()),
        )
        writes = agent.generate is not None
        marks = tuple(MARK + number * tokens + at for at in range(tokens if writes else 0))
        prompt, contexts[name] = _finished(model, prepared, marks)
        turns.append(
            Turn(
                name=name,
                after=tuple(one.sharer for one in inbound),
                parts=tuple(_parts(prompt, tokens, list(flow.spec.agents))),
                tokens=len(marks),
                continues=_continued(prompt, name, contexts),
                said=prepared.context.segments[-1].text,
            )
        )
    return turns


def _inbound(
    flow: Workflow, model: LocalModel, name: str, contexts: Mapping[str, Context]
) -> Iterator[Inbound]:
    """What an agent reads, without states: where words stand does not depend on their channel."""
    for number, edge in enumerate(flow.spec.edges):
        if edge.to != name:
            continue
        context = contexts[edge.from_]
        prompt_at = len(context.segments) - 1
        yield Inbound(
            edge=number,
            sharer=edge.from_,
            receiver=name,
            channel=TextChannel(),
            message=publish(
                edge.from_, flow.spec.share_of(edge), context, prompt_at, model.identity
            ),
        )


def _finished(
    model: LocalModel, prepared: Prepared, marks: tuple[int, ...]
) -> tuple[tuple[int, ...], Context]:
    """A turn's prompt, and its context once it has written."""
    builder, context = model.context_builder, prepared.context
    if not marks:
        return context.ids, context
    ask = builder.ask(context)
    answer = Segment(
        role="assistant",
        ids=(*ask, *marks, *builder.close()),
        content=(len(ask), len(ask) + len(marks)),
        text="",
        position=len(context.ids),
    )
    return context.ids + ask, context.extended(answer)


def _parts(
    prompt: Sequence[int], tokens: int, names: Sequence[str]
) -> Iterator[tuple[int, ...] | str]:
    """Ids, and for each run of marks the agent that they stand for."""
    at = 0
    while at < len(prompt):
        if prompt[at] >= MARK:
            yield names[(prompt[at] - MARK) // tokens]
            at += tokens
            continue
        end = next((end for end in range(at, len(prompt)) if prompt[end] >= MARK), len(prompt))
        yield tuple(prompt[at:end])
        at = end


def _continued(prompt: Sequence[int], name: str, contexts: Mapping[str, Context]) -> str | None:
    """Whose context is the longest that the prompt begins with."""
    longest = [
        (len(context.ids), other)
        for other, context in contexts.items()
        if other != name and prompt[: len(context.ids)] == context.ids
    ]
    return max(longest)[1] if longest else None
