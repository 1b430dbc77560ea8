"""A sequential model of rounds: what every turn reads, one agent after the other."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from unspoken.agents.runtime.dataflow import Dataflow, Exhausted, Firing
from unspoken.agents.spec.graph import build_graph
from unspoken.agents.spec.spec import WorkflowSpec

Turn = tuple[int, dict[int, str], frozenset[int]]
"""A turn: its number, its inbox by edge, and the edges that are new."""


@dataclass(frozen=True)
class RoundCase:
    """A workflow as numbers: agents 0 to n - 1, forward edges from lower to higher ones.

    Attributes:
        limits: By agent, its max_turns.
        edges: As (sharer, receiver, loop).
        silent: What goes as a skip, as (edge, turn of its sharer).
        failing: Turns that fail and send nothing but skips, as (agent, turn).
    """

    limits: tuple[int | None, ...]
    edges: tuple[tuple[int, int, bool], ...]
    silent: frozenset[tuple[int, int]] = frozenset()
    failing: frozenset[tuple[int, int]] = frozenset()

    def sends(self, agent: int, turn: int) -> dict[int, str | None]:
        """What a turn sends."""
        fails = (agent, turn) in self.failing
        return {
            key: None if fails or (key, turn) in self.silent else f"{agent}.{turn}"
            for key, (sharer, _, _) in enumerate(self.edges)
            if sharer == agent
        }

    def after(self, agent: int) -> set[int]:
        """An agent and all that follows from it by edges that are no loops."""
        reached = {agent}
        for sharer, receiver, loop in sorted(self.edges):
            if sharer in reached and not loop:
                reached.add(receiver)
        return reached

    def in_order(self, pick: Any) -> tuple[dict[int, list[Turn]], list[int]]:
        """What the dataflow makes of it, where `pick` says which running agent ends next."""
        rows = [{"from": f"n{a}", "to": f"n{b}", "loop": loop} for a, b, loop in self.edges]
        agents = {
            f"n{n}": {"model": "m", "prompt": "p", "max_turns": limit}
            for n, limit in enumerate(self.limits)
        }
        data = {"name": "test", "models": {"m": "x"}, "agents": agents, "edges": rows}
        flow: Dataflow[str] = Dataflow(build_graph(WorkflowSpec.model_validate(data)))
        turns: dict[int, list[Turn]] = defaultdict(list)
        ended: list[int] = []
        running: list[tuple[int, int]] = []
        actions = flow.start()
        while True:
            for action in actions:
                if isinstance(action, Firing):
                    agent = int(action.agent[1:])
                    turns[agent].append((action.turn, dict(action.inbox), action.fresh))
                    running.append((agent, action.turn))
                elif isinstance(action, Exhausted):
                    ended.append(action.edge)
            if not running:
                return dict(turns), sorted(ended)
            agent, turn = running.pop(pick(len(running)))
            actions = flow.complete(f"n{agent}", self.sends(agent, turn))


@dataclass
class Sequential:
    """The same, one agent after the other: the rules of rounds as a reader would follow them."""

    case: RoundCase
    holds: dict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    new: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    waiting: dict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    turns: dict[int, list[Turn]] = field(default_factory=lambda: defaultdict(list))
    called: set[int] = field(default_factory=set)
    aside: set[int] = field(default_factory=set)
    ended: list[int] = field(default_factory=list)

    def left(self, agent: int) -> float:
        limit = self.case.limits[agent]
        return float("inf") if limit is None else limit - len(self.turns[agent])

    def run(self) -> tuple[dict[int, list[Turn]], list[int]]:
        everyone = set(range(len(self.case.limits)))
        sharers = {receiver for _, receiver, loop in self.case.edges if not loop}
        self.round(everyone, everyone - sharers)
        while targets := self.targets():
            members = set().union(*map(self.case.after, targets))
            self.forget(members)
            for target in targets:
                self.holds[target] |= self.waiting[target]
                self.new[target] |= set(self.waiting.pop(target))
            self.round(members, targets)
        self.round(set(self.aside), set(), last=True)
        return {agent: turns for agent, turns in self.turns.items() if turns}, sorted(self.ended)

    def targets(self) -> set[int]:
        """Whom a message waits for, the innermost; those without a turn lose it."""
        for agent in [agent for agent in self.waiting if self.left(agent) <= 0]:
            self.ended += self.waiting.pop(agent)
        return {
            agent
            for agent in self.waiting
            if not (self.case.after(agent) - {agent}) & set(self.waiting)
        }

    def forget(self, members: set[int]) -> None:
        """What members and loops brought in earlier rounds is gone."""
        for agent in members:
            for key in list(self.holds[agent]):
                sharer, _, loop = self.case.edges[key]
                if loop or sharer in members:
                    del self.holds[agent][key]
                    self.new[agent].discard(key)

    def round(self, members: set[int], started: set[int], *, last: bool = False) -> None:
        """Everybody's turn once, sharers first."""
        if not last:
            self.called -= members
            self.aside -= members
        for agent in sorted(members):
            behind = any(
                sharer in self.aside and receiver == agent and not loop
                for sharer, receiver, loop in self.case.edges
            )
            if agent in started or (agent in self.called and not behind):
                self.turn(agent, started, last)
            elif behind and not last:
                self.aside.add(agent)
            if last:
                self.aside.discard(agent)

    def turn(self, agent: int, started: set[int], last: bool) -> None:
        """One turn, unless it waits for the last round or there is none left."""
        if self.left(agent) <= 0:
            self.ended += self.new[agent]
            for key in self.new.pop(agent):
                del self.holds[agent][key]
            return
        if agent not in started and not last and self.waits(agent):
            self.aside.add(agent)
            return
        turn = len(self.turns[agent]) + 1
        inbox = dict(sorted(self.holds[agent].items()))
        self.turns[agent].append((turn, inbox, frozenset(self.new.pop(agent, ()))))
        for key, text in self.case.sends(agent, turn).items():
            _, receiver, loop = self.case.edges[key]
            if text is None:
                continue
            if loop:
                self.waiting[receiver][key] = text
            else:
                self.holds[receiver][key] = text
                self.new[receiver].add(key)
                self.called.add(receiver)

    def waits(self, agent: int) -> bool:
        """Whether a turn is kept for after the last round."""
        loops = [(sharer, receiver) for sharer, receiver, loop in self.case.edges if loop]
        depends = any(sharer in self.case.after(agent) for sharer, _ in loops)
        again = any(
            agent in self.case.after(target) and self.left(target) > 0 for _, target in loops
        )
        return self.left(agent) == 1 and not depends and again


@st.composite
def round_cases(draw: st.DrawFn) -> RoundCase:
    size = draw(st.integers(1, 7))
    pairs = [(a, b, False) for b in range(size) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=12)) if pairs else []
    loops = draw(
        st.lists(
            st.tuples(st.integers(0, size - 1), st.integers(0, size - 1), st.just(True)),
            unique=True,
            max_size=4,
        )
    )
    targets = {receiver for _, receiver, _ in loops}
    limits = [
        draw(st.integers(2, 4) if agent in targets else st.none() | st.integers(1, 3))
        for agent in range(size)
    ]
    every = [*edges, *loops]
    flags = st.tuples(st.integers(0, max(len(every) - 1, 0)), st.integers(1, 4))
    return RoundCase(tuple(limits), tuple(every), draw(st.frozensets(flags, max_size=12)))
