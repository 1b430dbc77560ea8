"""One message, many solvers: all at a time, one after another, and by others.

Every way is timed end to end, the reading of the document included, from the words of the document
to the last word of the last solver. All take their turn in one run.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from unspoken.agents.bench import Measured, Progress
from unspoken.agents.bench.engine.baselines import Plain
from unspoken.agents.bench.engine.decoding import copies_while_decoding, written_by_engine
from unspoken.agents.bench.engine.graphs import require_langgraph, team_graph
from unspoken.agents.bench.engine.share import (
    Timing,
    figures,
    median_seconds,
    said,
    timed,
    timed_in_turn,
    total,
)
from unspoken.agents.bench.engine.team import QUESTIONS, Team
from unspoken.agents.bench.passages import cut_passages
from unspoken.agents.bench.scale import SCALES
from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import ModelSupportError

SIZES = (1, 2, 4, 8, 16)
TOKENS, NEW, ROUNDS = 512, 64, SCALES["fanout"].rows
GRAPH, MOST = 8, 16
"""How many agents LangGraph has, and how many the largest ratio is of."""

TOGETHER, IN_PLACE = "together", "together, message in place"
SEQUENTIAL, SEQUENTIAL_IN_PLACE = "one after another", "one after another, message in place"
GENERATE = "generate, one batch of full prompts"
GRAPH_PLAIN, GRAPH_CACHED = "LangGraph, full prompts", "LangGraph, document's cache copied"

Key = tuple[str, int]
Timings = dict[Key, list[Timing]]


def measure(
    model: LocalModel, *, text: Path | None = None, count: int | None = None, progress: Progress
) -> Measured:
    """Rows per number of solvers and way, and the ratios at 8 and 16 solvers."""
    words = cut_passages(model, text, 1, TOKENS)[0]
    team = Team.make(model, words, QUESTIONS[: max(SIZES)], NEW)
    plain = Plain.of(model)
    equal = _equal_rows(team, plain)
    copies = copies_while_decoding(team, GRAPH)
    progress(f"{equal['alone']} of {equal['rows']} write what they write alone")
    progress(f"while {GRAPH} decode, the message is in memory {copies:g} times")
    timings = _timings(team, plain, count or ROUNDS, progress)
    rows = [_row(team, key, taken, timings) for key, taken in timings.items()]
    for size in SIZES:
        ways = [
            f"{way} {said(taken)}" for (way, agents), taken in timings.items() if agents == size
        ]
        progress(f"{size} agents: {'; '.join(ways)}")
    rows.append({"of": "tokens of the first rows", **equal})
    return rows, {
        **_ratios(timings),
        "prefix_copies_8": copies,
        "tokens_equal": equal["alone"] == equal["rows"],
    }


def _equal_rows(team: Team, plain: Plain) -> dict[str, int]:
    """How many rows of a full batch write what each writes alone, and what generate writes."""
    prompts = team.prompts[:GRAPH]
    together = written_by_engine(team, prompts, together=True)
    alone = written_by_engine(team, prompts, together=False)
    theirs = [plain.generate([prompt], team.tokens, exactly=True)[0] for prompt in prompts]
    return {
        "rows": len(prompts),
        "alone": sum(a == b for a, b in zip(together, alone, strict=True)),
        "generate": sum(a == b for a, b in zip(together, theirs, strict=True)),
    }


def _timings(team: Team, plain: Plain, rounds: int, progress: Progress) -> Timings:
    """The timings of every way and size."""
    ways: dict[Key, Callable[[], object]] = {}
    for size in SIZES:
        flow = team.flow(range(size))
        ways[TOGETHER, size] = partial(team.run, flow)
        ways[IN_PLACE, size] = partial(team.run, flow, read=False)
        prompts = team.prompts[:size]
        ways[GENERATE, size] = partial(plain.generate, prompts, team.tokens, exactly=True)
    for number in range(max(SIZES)):  # one after another: sums of these
        flow = team.flow([number])
        ways["alone", number] = partial(team.run, flow, read=False)
    ways["reading", 0] = partial(team.run, team.flow([0]))
    ways |= _graphs(team, plain, progress)
    device = team.model.device
    for key in {(way, min(size, 1)) for way, size in ways} & ways.keys():
        ways[key]()  # warms up
    taken = timed_in_turn(
        ways,
        rounds,
        device,
        lambda fraction: progress(f"{fraction:.0%} of the rounds"),
        warm_up=False,
    )
    return _with_sums(taken)


def _graphs(team: Team, plain: Plain, progress: Progress) -> dict[Key, Callable[[], object]]:
    """LangGraph's two ways; none, where it is not installed."""
    try:
        require_langgraph()
    except ModelSupportError as error:
        progress(f"no comparison with LangGraph: {error}")
        return {}
    trials = {
        at_a_time: timed(
            team_graph(team, plain, GRAPH // 2, cached=False, at_a_time=at_a_time),
            team.model.device,
        ).seconds
        for at_a_time in (None, 1)
    }
    at_a_time = min(trials, key=trials.__getitem__)
    progress(f"LangGraph's nodes: {'one at a time' if at_a_time else 'in its threads'} is faster")
    return {
        (way, GRAPH): team_graph(team, plain, GRAPH, cached=cached, at_a_time=at_a_time)
        for way, cached in ((GRAPH_PLAIN, False), (GRAPH_CACHED, True))
    }


def _with_sums(taken: Timings) -> Timings:
    """The timings by size, with the sums of turns that were taken one after another."""
    alone = [taken.pop(("alone", number)) for number in range(max(SIZES))]
    first = taken.pop(("reading", 0))

    def sums(parts: Sequence[list[Timing]]) -> list[Timing]:
        return [total(timings) for timings in zip(*parts, strict=True)]

    for size in SIZES:
        taken[SEQUENTIAL, size] = sums([first, *alone[1:size]])
        taken[SEQUENTIAL_IN_PLACE, size] = sums(alone[:size])
    return dict(sorted(taken.items(), key=lambda item: item[0][1]))


def _row(team: Team, key: Key, taken: list[Timing], timings: Timings) -> dict[str, Any]:
    way, size = key
    ours = IN_PLACE if way.endswith("in place") else TOGETHER
    return {
        "agents": size,
        "way": way,
        "together_is_faster": round(median_seconds(taken) / median_seconds(timings[ours, size]), 2),
        "tokens_per_s": round(size * team.tokens / median_seconds(taken), 1),
        **figures(taken),
    }


def _ratios(timings: Timings) -> dict[str, float | None]:
    """How many times faster than each way all solvers together are."""

    def ratio(size: int, *ways: str, ours: str = TOGETHER) -> float | None:
        rivals = [median_seconds(timings[way, size]) for way in ways if (way, size) in timings]
        if not rivals or (ours, size) not in timings:
            return None
        return round(min(rivals) / median_seconds(timings[ours, size]), 2)

    return {
        "speedup_8_vs_sequential": ratio(GRAPH, SEQUENTIAL),
        "speedup_8_vs_generate": ratio(GRAPH, GENERATE),
        "speedup_8_vs_langgraph": ratio(GRAPH, GRAPH_PLAIN, GRAPH_CACHED),
        "speedup_8_vs_langgraph_plain": ratio(GRAPH, GRAPH_PLAIN),
        "speedup_8_vs_langgraph_cached": ratio(GRAPH, GRAPH_CACHED),
        "speedup_16_vs_sequential": ratio(MOST, SEQUENTIAL),
        "speedup_8_vs_sequential_in_place": ratio(GRAPH, SEQUENTIAL_IN_PLACE, ours=IN_PLACE),
    }
