"""Agents that go on from one conversation, one after another, beside the same in LangGraph.

Timed end to end: from the words of the document to the last word of the last agent.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.engine.baselines import Plain
from unspoken.agents.bench.engine.graphs import relay_graph, require_langgraph
from unspoken.agents.bench.engine.share import figures, median_seconds, said, timed_in_turn
from unspoken.agents.bench.engine.team import STEPS, Ids, Relay
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.models.model import LocalModel

TOKENS, NEW, ROUNDS = 1024, 48, SCALES["chain"].rows

OURS, PLAIN, CACHED = "ours", "LangGraph, full prompts", "LangGraph, conversation's cache handed on"


def measure(
    model: LocalModel, *, text: Path | None = None, count: int | None = None, progress: Progress
) -> Measured:
    """Rows per way, and how many times faster than LangGraph's nodes ours is."""
    require_langgraph()
    document = model.text.decode(cut_passages(model, text, 1, TOKENS)[0])
    relay = Relay(model=model, document=document, steps=STEPS, tokens=NEW)
    plain = Plain.of(model)
    graphs = {way: relay_graph(relay, plain, cached=way == CACHED) for way in (PLAIN, CACHED)}
    answers = {way: _words(model, run()) for way, run in graphs.items()}  # warms up, too
    flow = relay.flow()
    result = relay.run(flow)
    answers[OURS] = [result[agent].text for agent in result.report.agents]
    ways: dict[str, Callable[[], object]] = {OURS: partial(relay.run, flow), **graphs}
    timings = timed_in_turn(ways, count or ROUNDS, model.device, warm_up=False)
    seconds = {way: median_seconds(taken) for way, taken in timings.items()}
    rows: list[dict[str, Any]] = [
        {
            "way": way,
            "agents": len(STEPS),
            "document_tokens": TOKENS,
            "new_tokens": NEW,
            "ours_is_faster": round(seconds[way] / seconds[OURS], 2),
            "answers_equal": sum(map(str.__eq__, answers[way], answers[OURS])),
            **figures(taken),
        }
        for way, taken in timings.items()
    ]
    progress("; ".join(f"{way} {said(taken)}" for way, taken in timings.items()))
    return rows, {
        "speedup_vs_langgraph": round(min(seconds[PLAIN], seconds[CACHED]) / seconds[OURS], 2),
        "speedup_vs_langgraph_plain": round(seconds[PLAIN] / seconds[OURS], 2),
        "speedup_vs_langgraph_cached": round(seconds[CACHED] / seconds[OURS], 2),
        "answers_equal": answers[OURS] == answers[PLAIN] == answers[CACHED],
    }


def _words(model: LocalModel, written: list[Ids]) -> list[str]:
    return [model.text.decode(ids) for ids in written]
