"""LangGraph with transformers in its nodes, in two forms.

Each node calls `generate` with its full prompt; or the program keeps transformers' caches, and a
node goes on from the cache of the turn that its prompt begins with. Whether LangGraph runs its
nodes in threads or one at a time is tried in the warm-up, and the faster one stays.
"""

import operator
from functools import partial
from importlib.metadata import version
from math import inf
from time import perf_counter
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langsmith import tracing_context

from .plain import Plain, copied, counting
from .serving import Case, Job, Loaded, Outcome, serve
from .turns import Turn, answers, continued, prompt_of


class _State(TypedDict):
    """What the nodes share: the ids and the cache of each turn that is over."""

    written: Annotated[dict[str, list[int]], operator.or_]
    caches: Annotated[dict[str, Any], operator.or_]
    first: Annotated[dict[str, float], operator.or_]


class Graphs:
    """Workflows as graphs.

    Args:
        plain: What the nodes generate with.
        cached: Whether the program keeps caches.
    """

    def __init__(self, plain: Plain, *, cached: bool) -> None:
        self._plain, self._cached = plain, cached
        self._compiled: dict[str, Any] = {}
        self.at_a_time: int | None = None

    def run(self, case: Case) -> Outcome:
        """Run a workflow's graph."""
        compiled = self._compiled.setdefault(case["name"], self._graph(case))
        start: _State = {"written": {}, "caches": {}, "first": {}}
        outcome = Outcome()

        def invoke() -> None:
            limit = {"max_concurrency": self.at_a_time} if self.at_a_time else None
            with tracing_context(enabled=False):  # whatever the environment says
                state = compiled.invoke(start, limit)
            outcome.written, outcome.first = state["written"], state["first"]

        outcome.computed = counting(self._plain, invoke)
        return outcome

    def warm_up(self, case: Case) -> Outcome:
        """Run it in threads and one node at a time, twice each; what is faster stays."""
        outcome = self.run(case)  # the first run of a process is slow, and counts for neither
        seconds: dict[int | None, float] = {None: inf, 1: inf}
        for at_a_time in (None, 1, None, 1):
            self.at_a_time = at_a_time
            began = perf_counter()
            self.run(case)
            seconds[at_a_time] = min(seconds[at_a_time], perf_counter() - began)
        self.at_a_time = min(seconds, key=seconds.__getitem__)
        self._compiled.clear()
        return outcome

    def _graph(self, case: Case) -> Any:
        graph = StateGraph(_State)
        uses = continued(case)
        for turn in case["turns"]:
            graph.add_node(turn["name"], partial(self._node, turn, uses))
            graph.add_edge(list(turn["after"]) or START, turn["name"])  # waits for all of them
        for name in answers(case):
            graph.add_edge(name, END)
        return graph.compile()

    def _node(self, turn: Turn, uses: dict[str, int], state: _State) -> dict[str, Any]:
        name = turn["name"]
        if not turn["tokens"]:
            if not self._cached or not uses[name]:
                return {}
            cache = self._plain.empty_cache()
            self._plain.read(prompt_of(turn, state["written"]), cache)
            return {"caches": {name: cache}}
        cache = self._cache(turn, uses, state)
        prompt = prompt_of(turn, state["written"])
        (ids,), first = self._plain.generate([prompt], turn["tokens"], cache)
        kept = {name: cache} if self._cached and uses[name] else {}
        return {"written": {name: ids}, "first": {name: first}, "caches": kept}

    def _cache(self, turn: Turn, uses: dict[str, int], state: _State) -> Any:
        if not self._cached:
            return None
        if turn["continues"] is None:
            return self._plain.empty_cache()
        cache = state["caches"][turn["continues"]]
        return copied(cache) if uses[turn["continues"]] > 1 else cache


def load(job: Job) -> Loaded:
    """The model, and a graph for each workflow."""
    plain = Plain(job)
    graphs = Graphs(plain, cached=job["cached"])
    graphs.warm_up(job["warm_up"])
    nodes = "one node at a time" if graphs.at_a_time else "nodes in threads"
    about = f"LangGraph {version('langgraph')}, {nodes}, {plain.about}"
    return Loaded(about=about, run=graphs.run)


if __name__ == "__main__":
    serve(load)
