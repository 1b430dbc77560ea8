"""From messages and a prompt to the turns of an agent's context."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from unspoken.agents.engines.base import Inbound
from unspoken.agents.prompts.absent import Absent
from unspoken.agents.prompts.context import ChatTurn, Context, ContextBuilder, Quote
from unspoken.agents.prompts.jinja import TextRef, evaluate, references, render, render_parts
from unspoken.agents.prompts.order import InEdge, order_of_parts
from unspoken.agents.runtime.agent_run import AgentRun
from unspoken.agents.spec.generate import GenerateSpec
from unspoken.agents.spec.problems import describe, listed, suggest
from unspoken.agents.spec.references import bare_expression
from unspoken.agents.spec.spec import AgentSpec, WorkflowSpec
from unspoken.channels.base import Arrival
from unspoken.channels.errors import ContextLengthError, InputError
from unspoken.channels.message import Message

if TYPE_CHECKING:
    from unspoken.agents.models.base import AgentModel

_NOTHING: Mapping[int, Mapping[str, object]] = MappingProxyType({})


def require_messages(spec: WorkflowSpec, received: object) -> Mapping[str, Message]:
    """Refuse what is no message of one of a workflow's agents, before any model is loaded.

    Raises:
        InputError: There is no such agent, or no message; inputs are given by name instead.
    """
    if not isinstance(received, Mapping):
        raise InputError(
            f"{describe(received)} stands where the messages of agents stand",
            expected="a mapping of agents to messages, or nothing",
            fix="give inputs by name, as in run(name=value)",
        )
    for name, message in received.items():
        if not isinstance(message, Message):
            raise InputError(
                f"{describe(message)} was received for {name!r}, and is no message",
                expected="messages by agent; inputs are given by name",
                fix=f"write run({name}=...)" if name in spec.inputs else "write run(**inputs)",
            )
        if name not in spec.agents:
            raise InputError(
                f"a message was received for {name!r}, which is no agent",
                expected=listed(spec.agents),
                fix=suggest(name, spec.agents),
            )
    return received


def check_received(
    spec: WorkflowSpec, models: Mapping[str, "AgentModel"], received: Mapping[str, Message]
) -> None:
    """Refuse a message that the agent of its name cannot have published.

    Raises:
        InputError: It is another agent's, or its edges share something else.
        IdentityMismatch: Another model made it.
    """
    for name, message in received.items():
        if message.sharer != name:
            raise InputError(
                f"the message received for {name!r} says that {message.sharer!r} shares it",
                expected=f"a message of {name!r}",
                fix=f"publish it under that name: model.message(text, sharer={name!r})",
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


def require_room(agent: AgentRun, context: Context) -> None:
    """Refuse a turn for which a conversation of a session has become too long.

    Raises:
        ContextLengthError: There is no token left for an answer.
    """
    earlier = agent.context
    if agent.spec.memory != "session" or earlier is None:
        return
    most = agent.engine.facts.max_positions
    if len(context.ids) < most:
        return
    raise ContextLengthError(
        f"the conversation of {agent.name!r} has {len(earlier.ids)} tokens, and "
        f"{len(context.ids)} with this turn",
        expected=f"fewer than the {most} of {agent.model.ref or 'the model'}",
        fix="begin it anew: --anew (in Python, Session(anew=True) or session.forget()), shorten "
        "the prompt, or use a model with a longer context",
    )


def items_of(agent: AgentRun, inputs: Mapping[str, object]) -> Sequence[object]:
    """The items that an agent with ``for_each`` runs over.

    Raises:
        InputError: The expression gives no list.
    """
    rows = evaluate(str(agent.spec.for_each), {"inputs": dict(inputs)})
    if not isinstance(rows, list | tuple):
        raise InputError(
            f"for_each of {agent.name!r} gives {type(rows).__name__}", expected="a list of items"
        )
    return rows


@dataclass(frozen=True, slots=True)
class Prepared:
    """A turn's context, and which messages have a place in it.

    Attributes:
        context: The composed context.
        placed: The messages to carry into it, each in its place.
    """

    context: Context
    placed: tuple[Inbound, ...]


def prepare_turn(
    builder: ContextBuilder,
    prompt: str,
    inbound: Sequence[Inbound],
    variables: Mapping[str, object],
    *,
    system: str | None,
    earlier: Context | None,
    leading: Sequence[int] = (),
    told: Mapping[int, Mapping[str, object]] = _NOTHING,
) -> Prepared:
    """Compose an agent's next turn; `order_of_parts` says where each message stands.

    Args:
        builder: Context builder of the agent's model.
        prompt: The agent's prompt template.
        inbound: Messages of the turn, in the order of the edges.
        variables: What templates may read besides the agents.
        system: The rendered system prompt.
        earlier: The agent's context so far.
        leading: Edges whose messages come first, as planned.
        told: What templates may read of a sharer besides its words, by edge.
    """
    by_edge = {message.edge: message for message in inbound}
    order = order_of_parts(prompt, [_in_edge(message) for message in inbound], leading)
    names = {
        name: {"text": TextRef(by_edge[number].message.text, name), **told.get(number, {})}
        for name, number in order.quoted.items()
    }
    mentioned = {reference.root for reference in references(prompt)}
    absent = {name: Absent() for name in mentioned - names.keys() - variables.keys()}
    pieces: list[str | Quote] = []
    for part in render_parts(prompt, {**absent, **variables, **names}):
        number = order.quoted[part.agent] if isinstance(part, TextRef) else None
        if number is not None and number in order.tokens_kept:
            message = by_edge[number].message
            pieces.append(Quote(message, message.segments[0]))
        else:
            pieces.append(str(part))
    turns = [turn for number in order.turns for turn in _turns(by_edge[number])]
    turns.append(ChatTurn("user", tuple(pieces)))
    context = builder.compose(turns, system=system, earlier=earlier)
    return Prepared(context, tuple(_placed(one, context) for one in inbound if one.fresh))


def prepare_inputs(
    builder: ContextBuilder,
    agent: AgentSpec,
    inbound: Sequence[Inbound],
    variables: Mapping[str, object],
    told: Mapping[int, Mapping[str, object]] = _NOTHING,
) -> Prepared:
    """The inputs of an agent that is a workflow: one turn, in JSON.

    Args:
        builder: Context builder of the agent.
        agent: The agent.
        inbound: Messages of the turn, in the order of the edges.
        variables: What templates may read besides the agents.
        told: What templates may read of a sharer besides its words, by edge.
    """
    assert agent.workflow is not None
    names: dict[str, object] = {}
    for one in inbound:
        names.setdefault(one.sharer, {"text": one.message.text, **told.get(one.edge, {})})
    values = {}
    for name, given in agent.inputs.items():
        if not isinstance(given, str):
            values[name] = given
            continue
        expression = bare_expression(given)
        as_value = agent.workflow.inputs[name].type != "text" and expression is not None
        source = str(expression) if as_value else given
        mentioned = {read.root for read in references(source, expression=as_value)}
        absent = {root: Absent() for root in mentioned - names.keys() - variables.keys()}
        known = {**absent, **variables, **names}
        values[name] = evaluate(source, known) if as_value else render(given, known)
    words = json.dumps(values, ensure_ascii=False, default=str)
    context = builder.compose([ChatTurn("user", (words,))])
    return Prepared(context, tuple(_placed(one, context) for one in inbound if one.fresh))


def _placed(inbound: Inbound, context: Context) -> Inbound:
    """A message in its place in a composed context."""
    message = inbound.message
    spans, texts = context.spans(message), context.texts(message)
    return replace(
        inbound, arrival=Arrival(message=message, spans=spans, context=context.ids, texts=texts)
    )


def _in_edge(inbound: Inbound) -> InEdge:
    message = inbound.message
    return InEdge(
        number=inbound.edge,
        sharer=inbound.sharer,
        one_turn=not message.whole and len(message.segments) == 1,
        fresh=inbound.fresh,
    )


def _turns(inbound: Inbound) -> list[ChatTurn]:
    message = inbound.message
    return [
        ChatTurn(segment.role if message.whole else inbound.role, (Quote(message, segment),))
        for segment in message.segments
    ]


def snapshots_of(
    context: Context, every: int | None, settings: GenerateSpec | None
) -> tuple[int, ...]:
    """Where recurrent layers leave snapshots in a context: at the ends of turns, and in between.

    Args:
        context: The context.
        every: Tokens from one to the next besides; None for the ends of turns alone.
        settings: How words are written after it, if any are.
    """
    written = 0 if settings is None else settings.max_new_tokens
    ends = {segment.position + len(segment.ids) for segment in context.segments}
    between = range(every, len(context.ids) + written, every) if every is not None else ()
    return tuple(sorted(ends.union(between)))
