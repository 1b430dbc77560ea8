"""The same agents in LangGraph, with transformers in their nodes.

LangGraph says who runs when; what a node computes is the program's own matter. So each node is
measured in two forms: it calls ``generate`` with its full prompt, or it has the shared beginning in
a cache of transformers that the program hands on.
"""

import operator
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypedDict

from unspoken.agents.bench.engine.baselines import Plain, copied
from unspoken.agents.bench.engine.team import Ids, Relay, Team
from unspoken.agents.prompts.context import Context
from unspoken.channels.errors import ModelSupportError

__all__ = ["relay_graph", "require_langgraph", "require_saver", "team_graph"]


def require_langgraph() -> Any:
    """LangGraph's module of graphs.

    Raises:
        ModelSupportError: It is not installed.
    """
    try:
        import langgraph.graph
    except ImportError as error:
        raise _missing("langgraph") from error
    return langgraph.graph


def require_saver(file: Path) -> Any:
    """LangGraph's own saver of checkpoints in SQLite.

    Args:
        file: Its database.

    Raises:
        ModelSupportError: It is not installed.
    """
    try:
        from langgraph.checkpoint.sqlite import SqliteSaver
    except ImportError as error:
        raise _missing("langgraph-checkpoint-sqlite") from error
    return SqliteSaver(sqlite3.connect(file, check_same_thread=False))


def _missing(package: str) -> ModelSupportError:
    return ModelSupportError(
        f"{package}, which this benchmark compares with, is not installed",
        expected="unspoken with its extra `peers`",
        fix='pip install "unspoken[peers]"',
    )


class _TeamState(TypedDict):
    """What a team's nodes share: the document's cache, and each agent's ids."""

    cache: Any
    written: Annotated[dict[int, Ids], operator.or_]


def team_graph(
    team: Team, plain: Plain, size: int, *, cached: bool, at_a_time: int | None
) -> Callable[[], list[Ids]]:
    """The first agents of a team, as nodes that LangGraph starts together.

    Args:
        team: The team.
        plain: What its nodes generate with.
        size: How many agents.
        cached: Whether a first node reads the document once, and each agent copies its cache.
        at_a_time: Most nodes that compute at the same time; None leaves it to LangGraph's threads.

    Returns:
        Runs the graph: the ids that each agent wrote.
    """
    module = require_langgraph()
    prompts = team.prompts[:size]
    graph = module.StateGraph(_TeamState)

    def read(state: _TeamState) -> dict[str, Any]:
        return {"cache": plain.prefill(team.message.context) if cached else None}

    def answer(number: int, state: _TeamState) -> dict[str, Any]:
        cache = copied(state["cache"]) if cached else None
        (ids,) = plain.generate([prompts[number]], team.tokens, exactly=True, cache=cache)
        return {"written": {number: ids}}

    graph.add_node("reader", read)
    graph.add_edge(module.START, "reader")
    for number in range(size):
        graph.add_node(f"agent_{number}", partial(answer, number))
        graph.add_edge("reader", f"agent_{number}")
        graph.add_edge(f"agent_{number}", module.END)
    compiled = graph.compile()

    def run() -> list[Ids]:
        written = _invoke(compiled, {"written": {}}, at_a_time)["written"]
        return [written[number] for number in range(size)]

    return run


class _RelayState(TypedDict):
    """What a relay's nodes hand on: the conversation, and its cache."""

    conversation: Context
    cache: Any
    written: Annotated[list[Ids], operator.add]


def relay_graph(relay: Relay, plain: Plain, *, cached: bool) -> Callable[[], list[Ids]]:
    """The agents of a relay, as nodes that follow each other.

    Args:
        relay: The relay.
        plain: What its nodes generate with.
        cached: Whether the conversation's cache goes from node to node.

    Returns:
        Runs the graph: the ids that each agent wrote.
    """
    module = require_langgraph()
    ask = relay.model.context_builder.ask()
    graph = module.StateGraph(_RelayState)

    def go_on(number: int, state: _RelayState) -> dict[str, Any]:
        asked = relay.asked(state["conversation"], number)
        prompt, cache = asked.ids + ask, state["cache"] if cached else None
        (ids,) = plain.generate([prompt], relay.tokens, exactly=True, cache=cache)
        return {"conversation": relay.answered(asked, ids), "written": [ids]}

    names = [f"agent_{number}" for number in range(len(relay.steps))]
    for number, name in enumerate(names):
        graph.add_node(name, partial(go_on, number))
    for before, after in zip((module.START, *names), (*names, module.END), strict=True):
        graph.add_edge(before, after)
    compiled = graph.compile()

    def run() -> list[Ids]:
        cache = plain.empty_cache() if cached else None
        start: dict[str, Any] = {"conversation": Context(), "cache": cache, "written": []}
        written: list[Ids] = _invoke(compiled, start, 1)["written"]
        return written

    return run


def _invoke(compiled: Any, start: dict[str, Any], at_a_time: int | None) -> Any:
    """Run a graph; nothing of it is reported to LangSmith, whatever the environment says."""
    from langsmith import tracing_context

    with tracing_context(enabled=False):
        return compiled.invoke(start, {"max_concurrency": at_a_time} if at_a_time else None)
