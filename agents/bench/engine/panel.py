"""A reader of a document, writers that continue it, and a judge who reads what they wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from unspoken.agents.bench.forced import forced_logs, prefilled
from unspoken.agents.bench.turns import generate
from unspoken.agents.engines.assembly import Past, assemble
from unspoken.agents.engines.base import Inbound, Sampling, TurnRequest
from unspoken.agents.engines.turn import drive_turn
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn, Context
from unspoken.agents.runtime.inbox import prepare_turn
from unspoken.agents.runtime.outbox import publish
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.base import Channel
from unspoken.channels.kv.state import KVState
from unspoken.channels.message import Message, Segment, common_prefix
from unspoken.channels.text import TextChannel

__all__ = [
    "JUDGE",
    "PROMPT",
    "READER",
    "Case",
    "Channels",
    "Outcome",
    "Sender",
    "carried",
    "case_of",
    "senders_of",
    "swapped",
    "workflow",
    "written",
]

TASKS = (
    "Sum up the text in your own words, in full sentences.",
    "Which people and places does the text name, and what does it say of each?",
    "What is uncertain or missing in the text? Explain it at length.",
    "Tell the same as a story for children.",
)
PROMPT = "Put together what the texts above say: what happened, and why does it matter?"
READER, JUDGE = "reader", "judge"

Channels = Mapping[int, Channel]
"""The channel of every edge of the judge."""


class Sender(NamedTuple):
    """A finished turn of the reader or of a writer."""

    context: Context
    state: KVState


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A judge's context over messages, and the words forced after it.

    Attributes:
        placed: The messages in their places.
        ids: Ids of the context, with those that ask for the judge's words.
        forced: Ids of these words.
        full: What text says of them, (forced, vocabulary).
    """

    placed: tuple[Inbound, ...]
    ids: tuple[int, ...]
    forced: tuple[int, ...]
    full: Tensor

    def by(self, channels: Channels) -> tuple[Inbound, ...]:
        """The messages, each by a channel."""
        return tuple(replace(one, channel=channels[one.edge]) for one in self.placed)


class Outcome(NamedTuple):
    """The forced distributions, and how many tokens of the context were computed."""

    logs: Tensor
    computed: int


def workflow(writers: int, size: int, *, whole: bool = False) -> WorkflowSpec:
    """A reader, writers that continue it, and a judge.

    Args:
        writers: How many.
        size: Most tokens that each writes.
        whole: Whether the judge has the first writer's whole context, in place of the document.
    """
    names = [f"writer{number}" for number in range(writers)]
    quiet = {"model": "m", "prompt": "{{ inputs.document }}", "generate": None}
    tasks = zip(names, TASKS, strict=False)
    agents: dict[str, Any] = {READER: quiet} | {
        name: {"model": "m", "prompt": task, "generate": {"max_new_tokens": size}}
        for name, task in tasks
    }
    edges: list[dict[str, Any]] = [{"from": READER, "to": name} for name in names]
    edges += [] if whole else [{"from": READER, "to": JUDGE}]
    edges += [{"from": name, "to": JUDGE} for name in names]
    if whole:
        edges[writers]["share"] = "context"
    return WorkflowSpec.model_validate(
        {
            "name": "fan-in",
            "models": {"m": "m"},
            "inputs": {"document": "text"},
            "agents": agents | {JUDGE: {"model": "m", "prompt": PROMPT}},
            "edges": edges,
        }
    )


def written(
    model: LocalModel, documents: Sequence[tuple[int, ...]], writers: int, tokens: int
) -> list[list[tuple[int, ...]]]:
    """What each writer writes on each document, sampled; nobody stops before the last token."""
    builder, prompts = model.context_builder, []
    for ids in documents:
        said = ChatTurn("user", (model.text.decode(ids),))
        for task in TASKS[:writers]:
            context = builder.compose([said, ChatTurn("user", (task,))])
            prompts.append(context.ids + builder.ask())
    drawn = {
        "do_sample": True,
        "temperature": 0.8,
        "min_new_tokens": tokens,
        "suppress_tokens": sorted(model.text.turn_markers),  # no message holds one
    }
    outputs = generate(model, prompts, tokens, **drawn)
    return [outputs[first : first + writers] for first in range(0, len(outputs), writers)]


def senders_of(
    model: LocalModel, document: tuple[int, ...], outputs: Sequence[tuple[int, ...]]
) -> list[Sender]:
    """The reader of a document and its writers, with their states."""
    builder, said = model.context_builder, ChatTurn("user", (model.text.decode(document),))
    read = builder.compose([said])
    reader = Sender(read, model.read(read.ids))
    senders = [reader]
    for task, words in zip(TASKS, outputs, strict=False):
        context = builder.compose([said, ChatTurn("user", (task,))])
        ask = builder.ask()
        answer = Segment(
            role="assistant",
            ids=(*ask, *words, *builder.close()),
            content=(len(ask), len(ask) + len(words)),
            text=model.text.decode(words),
            position=len(context.ids),
        )
        context = context.extended(answer)
        shared = common_prefix(context.ids, read.ids)
        new = model.tensor(context.ids[shared:])
        state = model.prefill(new, [reader.state.slice(0, shared)]).state
        senders.append(Sender(context, state))
    return senders


def case_of(
    model: LocalModel, spec: WorkflowSpec, senders: Sequence[Sender], *, forced: int, seed: int
) -> Case:
    """The judge's context over what the senders publish, and words drawn after it by text.

    Args:
        model: The model of all agents.
        spec: The workflow.
        senders: The finished turns of its first agents.
        forced: How many tokens are drawn.
        seed: Seed of the draw.
    """
    by_name = dict(zip(spec.agents, senders, strict=False))
    inbound = []
    for number, edge in enumerate(spec.edges):
        if edge.to == JUDGE:
            message = _published(model, edge.from_, spec.share_of(edge), by_name[edge.from_])
            inbound.append(
                Inbound(
                    edge=number,
                    sharer=edge.from_,
                    receiver=JUDGE,
                    channel=TextChannel(),
                    message=message,
                    fallback=False,
                )
            )
    builder = model.context_builder
    prepared = prepare_turn(builder, PROMPT, inbound, {}, system=None, earlier=None)
    ids = prepared.context.ids + builder.ask()
    full = model.read(ids)
    sampling = Sampling(max_tokens=forced, temperature=0.8, seed=seed)
    _, computed = drive_turn(model, TurnRequest(ids=ids, sampling=sampling), Past(ids, full))
    drawn = computed.ids[len(ids) :]
    logs = forced_logs(model, full, ids[-1], drawn)
    return Case(placed=prepared.placed, ids=ids, forced=drawn, full=logs)


def _published(model: LocalModel, name: str, share: Any, sender: Sender) -> Message:
    prompt_at = len(sender.context.segments) - (1 if name == READER else 2)
    message = publish(name, share, sender.context, prompt_at, model.identity)
    return replace(message, state=sender.state.slice(0, len(message.context)))


def swapped(placed: Sequence[Inbound], others: Sequence[Inbound]) -> list[Inbound]:
    """Messages with what others wrote in as many tokens in the place of each output."""
    exchanged = []
    for one, other in zip(placed, others, strict=True):
        assert one.arrival is not None  # it is placed
        (segment,), (span,) = other.message.segments, one.arrival.spans
        theirs = replace(span, source=segment.position + segment.content[0])
        arrival = replace(one.arrival, message=other.message, spans=(theirs,))
        exchanged.append(one if one.sharer == READER else replace(one, arrival=arrival))
    return exchanged


def carried(model: LocalModel, case: Case, placed: Sequence[Inbound]) -> Outcome:
    """What comes of a context whose messages came so, as a turn assembles it."""
    parts = assemble(model, case.ids, placed)
    state = prefilled(model, case.ids, parts.states, parts.missing)
    logs = forced_logs(model, state, case.ids[-1], case.forced)
    return Outcome(logs, len(parts.missing))
