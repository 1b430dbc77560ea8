"""What the scheduler itself costs: a thousand agents that compute nothing, beside LangGraph's.

An agent's turn is everything but its model: its template is rendered, its context composed, its
message published, its events told. Its engine gives one word at once. LangGraph's node gives a word
at once, too.

The checkpointed chain is kept as it goes: ours in a run's store, LangGraph's by its own saver, each
in SQLite with what it sets by itself.
"""

import operator
import tempfile
from collections.abc import Callable, Collection, Iterator
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any, TypedDict

import torch

from unspoken.agents.agent import Agent
from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.engine.graphs import require_langgraph, require_saver
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.engines.base import (
    KEEP,
    EngineFacts,
    Footprint,
    Keep,
    Sampled,
    StateRef,
    States,
    TurnEvent,
    TurnOutcome,
    TurnRequest,
    Usage,
)
from unspoken.agents.runs import RunStore
from unspoken.agents.spec.spec import EdgeSpec
from unspoken.agents.testing.scripted import ScriptedModel
from unspoken.agents.workflow import Workflow
from unspoken.channels.message import Message
from unspoken.channels.packets.files import Readable

AGENTS, ROUNDS = 1000, SCALES["overhead"].rows
"""Agents of a workflow, and how often each is run."""

WORD = "x"
"""What every agent writes."""

GRAPHS = CHAIN, FANOUT, CHECKPOINTED = SCALES["overhead"].parts
RATIOS = {CHAIN: "chain", FANOUT: "fanout", CHECKPOINTED: "checkpointed_chain"}


def measure(
    model: "WordModel",
    *,
    count: int | None = None,
    only: Collection[str] = GRAPHS,
    progress: Progress,
) -> Measured:
    """A row for each graph in each framework; the summary has our time over LangGraph's."""
    require_langgraph()
    with tempfile.TemporaryDirectory() as folder:
        return _measured(model, Path(folder), count or ROUNDS, only, progress)


def _measured(
    model: "WordModel", folder: Path, rounds: int, only: Collection[str], progress: Progress
) -> Measured:
    all_runs = {
        (CHAIN, "unspoken"): _ours(chain(model, AGENTS)),
        (CHAIN, "LangGraph"): _chain_graph(AGENTS),
        (FANOUT, "unspoken"): _ours(fan_out(model, AGENTS)),
        (FANOUT, "LangGraph"): _fan_out_graph(AGENTS),
        (CHECKPOINTED, "unspoken"): _kept(chain(model, AGENTS), folder / "unspoken"),
        (CHECKPOINTED, "LangGraph"): _checkpointed_graph(AGENTS, folder),
    }
    runs = {way: run for way, run in all_runs.items() if way[0] in only}
    seconds: dict[tuple[str, str], list[float]] = {way: [] for way in runs}
    for number in range(rounds + 1):  # the first warms up
        for way, run in runs.items():
            began = perf_counter()
            run()
            if number:
                seconds[way].append(perf_counter() - began)
    rows = [_row(way, taken) for way, taken in seconds.items()]
    for row in rows:
        progress(f"{row['graph']}, {row['framework']}: {row['seconds']} s")
    return rows, {f"{RATIOS[graph]}_ratio_to_langgraph": _ratio(seconds, graph) for graph in only}


def _row(way: tuple[str, str], taken: list[float]) -> dict[str, Any]:
    graph, framework = way
    return {
        "graph": graph,
        "framework": framework,
        "agents": AGENTS,
        "seconds": round(median(taken), 4),
        "least": round(min(taken), 4),
        "most": round(max(taken), 4),
        "ms_a_turn": round(1000 * median(taken) / AGENTS, 4),
    }


def _ratio(seconds: dict[tuple[str, str], list[float]], graph: str) -> float:
    """Our time over LangGraph's, of the runs beside each other; the median of all rounds."""
    pairs = zip(seconds[graph, "unspoken"], seconds[graph, "LangGraph"], strict=True)
    return round(median(ours / theirs for ours, theirs in pairs), 3)


def chain(model: ScriptedModel, size: int) -> Workflow:
    """Agents that each read the one before."""
    agents = [Agent(f"agent_{number}", model, prompt="go") for number in range(size)]
    edges = [{"from": f"agent_{n}", "to": f"agent_{n + 1}"} for n in range(size - 1)]
    return _connected("chain", agents, edges)


def fan_out(model: ScriptedModel, size: int) -> Workflow:
    """Agents that all read one."""
    agents = [Agent(f"agent_{number}", model, prompt="go") for number in range(size)]
    edges = [{"from": "reader", "to": agent.name} for agent in agents]
    return _connected("fan_out", [Agent("reader", model, prompt="go"), *agents], edges)


def _connected(name: str, agents: list[Agent], edges: list[dict[str, str]]) -> Workflow:
    """A workflow with text edges, all of them put in at once."""
    flow = Workflow(name, agents)
    made = tuple(EdgeSpec.model_validate({**edge, "channel": "text"}) for edge in edges)
    flow.spec = flow.spec.model_copy(update={"edges": made})
    return flow


def _ours(flow: Workflow) -> Callable[[], object]:
    return flow.run


def _kept(flow: Workflow, folder: Path) -> Callable[[], object]:
    store = RunStore(folder)
    return lambda: flow.run(store=store)


class _ChainState(TypedDict):
    text: str


class _FanState(TypedDict):
    text: str
    written: Annotated[list[str], operator.add]


def _chain_graph(size: int) -> Callable[[], object]:
    return _invoked(_chained(size).compile(), size)


def _checkpointed_graph(size: int, folder: Path) -> Callable[[], object]:
    compiled = _chained(size).compile(checkpointer=require_saver(folder / "langgraph.sqlite"))
    threads = count()
    return lambda: _invoked(compiled, size, thread_id=str(next(threads)))()


def _chained(size: int) -> Any:
    module = require_langgraph()
    graph = module.StateGraph(_ChainState)
    names = [f"agent_{number}" for number in range(size)]
    for name in names:
        graph.add_node(name, lambda state: {"text": WORD})
    for before, after in zip([module.START, *names], names, strict=False):
        graph.add_edge(before, after)
    return graph


def _fan_out_graph(size: int) -> Callable[[], object]:
    module = require_langgraph()
    graph = module.StateGraph(_FanState)
    graph.add_node("reader", lambda state: {"text": WORD})
    graph.add_edge(module.START, "reader")
    for number in range(size):
        graph.add_node(f"agent_{number}", lambda state: {"written": [WORD]})
        graph.add_edge("reader", f"agent_{number}")
    return _invoked(graph.compile(), size)


def _invoked(compiled: Any, size: int, **configurable: str) -> Callable[[], object]:
    settings = {"recursion_limit": size + 2, "configurable": configurable}
    return lambda: compiled.invoke({"text": WORD}, settings)


class WordModel(ScriptedModel):
    """A model whose turns are over at once: every agent writes one word."""

    def __init__(self) -> None:
        super().__init__({})

    def make_engine(self, states: States) -> "_WordEngine":  # type: ignore[override]
        """An engine that computes nothing."""
        return _WordEngine(self)


class _WordEngine:
    """Keeps the contract of an engine and no state."""

    def __init__(self, model: WordModel) -> None:
        self._model = model
        self._ids = model.text.encode_words(WORD)

    @property
    def facts(self) -> EngineFacts:
        model = self._model
        return EngineFacts(
            name=WORD,
            identity=model.identity,
            geometry=model.geometry,
            dtype=model.dtype,
            device=torch.device("cpu"),
            max_positions=model.max_positions,
            carries=False,
        )

    def footprint(self, request: TurnRequest) -> Footprint:
        return Footprint(0, 0)

    async def turn(
        self, request: TurnRequest, on_event: Callable[[TurnEvent], None]
    ) -> TurnOutcome:
        reply, ids = request.reply, request.ids
        if reply is not None:
            for token in self._ids:
                reply.push(token)
                on_event(Sampled(token))
            ids += reply.close()
        usage = Usage(
            prompt_tokens=len(request.ids),
            prefilled_tokens=len(request.ids),
            reused_tokens=0,
            recomputed_tokens=0,
            projected_tokens=0,
            generated_tokens=len(self._ids),
            layer_tokens_computed=0,
            ttft_s=0.0,
            seconds=0.0,
        )
        return TurnOutcome(ids=ids, state=None, usage=usage, finish="stop")

    async def keep(self, state: StateRef, ids: tuple[int, ...], how: Keep = KEEP) -> StateRef:
        raise NotImplementedError

    def release(self, state: StateRef) -> None:
        raise NotImplementedError

    def export(
        self, state: StateRef, message: Message, key: bytes | None = None
    ) -> Iterator[bytes | memoryview]:
        raise NotImplementedError

    async def admit(
        self, packet: bytes | Readable, key: bytes | None = None
    ) -> tuple[Message, StateRef]:
        raise NotImplementedError
