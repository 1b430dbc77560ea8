"""Small workflows to run, and what happens in them."""

import sqlite3
from collections.abc import Mapping
from contextlib import aclosing, closing
from typing import Any

from flows import DOCUMENT, QUESTION

from unspoken.agents import Agent, LocalModel, RunResult, Workflow
from unspoken.agents.events import Event
from unspoken.agents.runs import RunStore
from unspoken.channels import SameModelCacheChannel, TextChannel

__all__ = [
    "CACHE",
    "FEW",
    "GIVEN",
    "TEXT",
    "carried",
    "chain",
    "cut_off",
    "draft_and_critic",
    "events_of",
    "fan_out",
    "wrote",
]

CACHE, TEXT = "same_model_cache", "text"
GIVEN = {"document": DOCUMENT, "question": QUESTION}
FEW = {"max_new_tokens": 6}


def chain(model: LocalModel, channel: str, **edge: Any) -> Workflow:
    """Three agents in a row, each with the whole context of the one before."""
    agents = [
        Agent("a", model, prompt="{{ inputs.document }}", generate=FEW),
        Agent("b", model, prompt="the question", generate=FEW),
        Agent("c", model, prompt="the answer", generate=FEW),
    ]
    flow = Workflow("chain", agents)
    for sharer, receiver in (("a", "b"), ("b", "c")):
        shared = {"share": "context"}
        flow.connect(sharer, receiver, _channel(channel, **shared), **edge)
    return flow


def draft_and_critic(model: LocalModel, memory: str, channel: str, turns: int = 3) -> Workflow:
    """A draft that a critic sends back until all turns are used."""
    draft = Agent(
        "draft",
        model,
        prompt="{% if turn == 1 %}{{ inputs.document }}{% else %}again: "
        "{{ critic.text }}{% endif %}",
        generate=FEW,
        max_turns=turns,
        memory=memory,  # type: ignore[arg-type]
    )
    critic = Agent("critic", model, prompt="what of it?", generate=FEW, memory=memory)  # type: ignore[arg-type]
    flow = Workflow("loop", [draft, critic])
    flow.connect(draft, critic, channel)
    return flow.connect(critic, draft, channel, loop=True)


def fan_out(model: LocalModel, channel: str) -> Workflow:
    """One reader, three solvers, all on the reader's one state."""
    reader = Agent("reader", model, prompt="{{ inputs.document }}", generate=None)
    solvers = [Agent(f"s{n}", model, prompt=f"question {n}", generate=FEW) for n in range(3)]
    flow = Workflow("fan-out", [reader, *solvers])
    for solver in solvers:
        flow.connect(reader, solver, channel)
    return flow


def _channel(name: str, **options: Any) -> TextChannel | SameModelCacheChannel:
    return TextChannel(**options) if name == TEXT else SameModelCacheChannel(**options)


async def events_of(flow: Workflow, **inputs: object) -> list[Event]:
    async with aclosing(flow.stream(**inputs)) as events:
        return [event async for event in events]


def cut_off(store: RunStore, run: str, turns: int, computed: int | None = None) -> None:
    """Leave of a run what its store held when so many turns had been handed over.

    Args:
        store: Where it is.
        run: Its id.
        turns: How many of its turns had been handed over.
        computed: How many turns and items had been computed; those handed over, if not given.
    """
    store.close()
    with closing(sqlite3.connect(store.file)) as db, db:
        db.execute("DELETE FROM handed_over WHERE run = ? AND place >= ?", (run, turns))
        kept = db.execute("SELECT rowid FROM turns WHERE run = ? ORDER BY rowid", (run,))
        for (row,) in kept.fetchall()[turns if computed is None else computed :]:
            db.execute("DELETE FROM turns WHERE rowid = ?", (row,))
        db.execute("UPDATE runs SET status = 'running', outputs = NULL WHERE id = ?", (run,))


def wrote(result: RunResult) -> Mapping[str, tuple[str, ...]]:
    """What each agent wrote, turn by turn."""
    return {name: agent.turns for name, agent in result.agents.items()}


def carried(result: RunResult) -> list[tuple[str, str, str, int]]:
    """How each message was carried."""
    return [(edge.sharer, edge.receiver, edge.mode, edge.reused) for edge in result.report.edges]
