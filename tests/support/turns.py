"""Turns taken without a workflow: a context goes in, words and a state come out."""

from dataclasses import dataclass
from typing import Any

from unspoken.agents import GenerateSpec, LocalModel
from unspoken.agents.engines.assembly import Past
from unspoken.agents.engines.base import Carried, Inbound, Prefilling, Sampled, TurnRequest, Usage
from unspoken.agents.engines.turn import drive_turn
from unspoken.agents.prompts.context import Context
from unspoken.agents.runtime.reply import TurnReply, sampling_of
from unspoken.channels.base import Arrival, Channel
from unspoken.channels.kv.state import KVState


@dataclass(frozen=True)
class Turn:
    """What a turn is to do, in words."""

    context: Context
    inbound: tuple[Inbound, ...] = ()
    history: tuple[tuple[int, ...], KVState | None] | None = None
    generate: GenerateSpec | None = None
    keep_state: bool = False
    capture: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a turn left behind, in words."""

    context: Context
    text: str
    state: KVState | None
    carries: tuple[Carried, ...]
    usage: Usage
    finish: str


def inbound(
    edge: int, channel: Channel, arrival: Arrival, fallback: bool = True, sharer: str = "reader"
) -> Inbound:
    """A message in its place, its state with it."""
    return Inbound(
        edge=edge,
        sharer=sharer,
        receiver="solver",
        channel=channel,
        message=arrival.message,
        arrival=arrival,
        fallback=fallback,
    )


def writes(tokens: int = 8, **settings: Any) -> GenerateSpec:
    return GenerateSpec(max_new_tokens=tokens, **settings)


def take(model: LocalModel, turn: Turn) -> tuple[list[Prefilling | str], Taken]:
    """Take a turn to its end: progress and words as they came, and what it left behind."""
    settings, reply = turn.generate, None
    if settings is not None:
        reply = TurnReply(model, turn.context, tuple(settings.stop))
    request = TurnRequest(
        ids=reply.ids if reply else turn.context.ids,
        inbound=turn.inbound,
        sampling=sampling_of(settings, model) if settings else None,
        reply=reply,
        keep_state=turn.keep_state,
        capture=turn.capture,
    )
    past = None
    if turn.history is not None and turn.history[1] is not None:
        past = Past(turn.history[0], turn.history[1])
    events, computed = drive_turn(model, request, past)
    told: list[Prefilling | str] = []
    for event in events:
        if isinstance(event, Sampled) and reply is not None:
            told.append(reply.next_words())
        elif isinstance(event, Prefilling):
            told.append(event)
    if reply is not None and reply.rest:
        told.append(reply.rest)
    context = reply.closed_context() if reply else turn.context
    assert context.ids == computed.ids
    return told, Taken(
        context=context,
        text=reply.text if reply else "",
        state=computed.state,
        carries=tuple(event for event in events if isinstance(event, Carried)),
        usage=computed.usage,
        finish=computed.finish,
    )
