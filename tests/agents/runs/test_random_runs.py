"""Random workflows in runs that are killed, cancelled and paused, against a sequential model.

The same few each time; ``UNSPOKEN_EXAMPLES=2000`` looks at so many others.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sequential.interrupted import ROWS, World, read_in, to_end
from sequential.rounds import RoundCase, Sequential, round_cases

from unspoken.agents import Agent, RunResult, Workflow
from unspoken.agents.runs import Question
from unspoken.agents.testing import ScriptedModel
from unspoken.channels import RunError

EXAMPLES = os.environ.get("UNSPOKEN_EXAMPLES")
LOOKS = settings(max_examples=int(EXAMPLES or 25), deadline=None, derandomize=EXAMPLES is None)
FEW = {"max_new_tokens": 99}
MODEL = ScriptedModel({})
"""Of all runs: only its answers change."""

interruptions = st.lists(
    st.tuples(st.sampled_from(["before", "after", "after", "person", "scope"]), st.integers(0, 25)),
    max_size=3,
)


@dataclass(frozen=True, kw_only=True)
class Member:
    """An agent of a random graph.

    Attributes:
        join: As in a workflow.
        on_error: As in a workflow.
        failures, tries: How many tries fail, of how many.
        late: Whether it fails after its call.
        does: Whether it calls a tool, or what a person does; ``refused`` is an approval with a no.
        each: Whether it runs once per item; its first item is then the one that fails.
    """

    join: Any
    on_error: str
    failures: int
    tries: int
    late: bool
    does: str
    each: bool

    @property
    def fails(self) -> bool:
        """Whether its turn fails, or its first item does."""
        if self.does == "answer":  # its model writes nothing
            return False
        return self.failures >= self.tries or self.does == "refused"


@dataclass(frozen=True, kw_only=True)
class Edge:
    """An edge of a random graph: whether its condition holds, and what a person says to it."""

    sharer: int
    receiver: int
    holds: bool
    ask: str


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Agents and edges, from lower to higher ones; all of them text or all cache."""

    members: tuple[Member, ...]
    edges: tuple[Edge, ...]
    cache: bool

    def settle(self) -> tuple[set[int], set[int], list[Edge]]:
        """Who takes a turn, who wrote something, and which edges bring it, sharers first."""
        fired, wrote, brought = set[int](), set[int](), list[Edge]()
        for number, member in enumerate(self.members):
            inward = [edge for edge in self.edges if edge.receiver == number]
            if inward and not any(edge in brought for edge in inward):
                continue
            fired.add(number)
            if member.fails and member.on_error != "default" and not member.each:
                continue
            wrote.add(number)
            for edge in self.edges:
                if edge.sharer == number and edge.holds and edge.ask != "no":
                    brought.append(edge)
        return fired, wrote, brought

    def places(self, number: int) -> list[str]:
        """Where an agent's tool has its effects, once its turn is over."""
        member = self.members[number]
        if member.does != "tool":
            return []
        places = [f"{number}.1.{row}" for row in ROWS] if member.each else [f"{number}.1"]
        return places[1:] if member.fails and not member.late else places

    def world(self) -> World:
        """What its agents do outside."""
        members = list(enumerate(self.members))
        return World(
            calls=frozenset(n for n, member in members if member.does == "tool"),
            failures={f"{n}.1{'.0' if one.each else ''}": one.failures for n, one in members},
            late=frozenset(n for n, member in members if member.late),
        )

    def says(self, question: Question) -> str:
        """What a person says."""
        agent = int(question.agent[1:])
        if not question.receiver:
            does = self.members[agent].does
            known = {"approve": "yes", "refused": "no"}
            return known.get(does) or f"[{agent}.1|{does}]"
        ends = agent, int(question.receiver[1:])
        (ask,) = (edge.ask for edge in self.edges if (edge.sharer, edge.receiver) == ends)
        return ask if ask != "edit" else f"[{agent}.1|reworded]"

    def flow(self, world: World) -> Workflow:
        """It as a workflow."""
        agents, act = [], world.act
        for number, member in enumerate(self.members):
            own: dict[str, Any] = {"join": member.join, "on_error": member.on_error}
            if member.on_error == "default":
                own["default"] = f"[{number}.1|default]"
            if member.each:
                own["for_each"] = "inputs.rows"
            if member.does == "tool":
                own["tools"] = [act]
            elif member.does != "nothing":
                own["ask"] = "approve" if member.does == "refused" else member.does
            prompt = "Go {{ turn }}.{{ item }}!" if member.each else "Go {{ turn }}!"
            own["retry"] = {"attempts": member.tries, "wait": 0}
            agents.append(Agent(f"n{number}", MODEL, prompt=prompt, generate=FEW, **own))
        flow = Workflow("graph", agents, inputs={"rows": "list"})
        for edge in self.edges:
            asks: dict[str, Any] = {"nobody": None, "edit": "edit"}
            flow.connect(
                f"n{edge.sharer}",
                f"n{edge.receiver}",
                "same_model_cache" if self.cache else "text",
                when=f"'{'[' if edge.holds else '#'}' in n{edge.sharer}.text",
                ask=asks.get(edge.ask, "approve"),
            )
        return flow


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    size = draw(st.integers(1, 5))
    pairs = [(a, b) for b in range(size) for a in range(b)]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    asks = st.sampled_from(["nobody", "nobody", "nobody", "yes", "no", "edit"])
    edges = tuple(
        Edge(sharer=a, receiver=b, holds=draw(st.integers(0, 4)) > 0, ask=draw(asks))
        for a, b in sorted(chosen)
    )
    members = []
    doing = ["nothing", "tool", "tool", "tool", "approve", "refused", "edit", "answer"]
    for number in range(size):
        read = sum(edge.receiver == number for edge in edges)
        joins = ["all", "all", "any", *({"first": count} for count in range(1, read + 1))]
        does = draw(st.sampled_from(doing))
        members.append(
            Member(
                join=draw(st.sampled_from(joins)),
                on_error=draw(st.sampled_from(["fail", "skip", "skip", "default"])),
                failures=draw(st.sampled_from([0, 0, 1, 2])),
                tries=draw(st.integers(1, 2)),
                late=draw(st.booleans()),
                does=does,
                each=does in ("nothing", "tool") and draw(st.integers(0, 3)) == 0,
            )
        )
    return Graph(members=tuple(members), edges=edges, cache=draw(st.booleans()))


@LOOKS
@given(graph=graphs(), interruptions=interruptions)
def test_interrupted_graphs_end_as_the_sequential_model_says(
    graph: Graph, interruptions: Any
) -> None:
    """The same agents wrote and read; every effect was once, or is told as unknown."""
    world, (fired, wrote, brought) = graph.world(), graph.settle()
    MODEL.answers = world.words
    flow = graph.flow(world)
    deadly = {n for n in fired if graph.members[n].fails and graph.members[n].on_error == "fail"}
    with tempfile.TemporaryDirectory() as folder:
        if deadly:
            with pytest.raises(RunError) as caught:
                to_end(flow, world, Path(folder), interruptions, graph.says)
            assert int(caught.value.agent[1:]) in deadly
            assert len(set(world.effects)) == len(world.effects)
            return
        result = to_end(flow, world, Path(folder), interruptions, graph.says)
    assert {int(name[1:]) for name, agent in result.agents.items() if agent.text} == wrote
    for number in wrote:
        require_read(graph, number, result, brought)
    require_effects(world, result, {place for n in fired for place in graph.places(n)})


def require_read(graph: Graph, number: int, result: RunResult, brought: list[Edge]) -> None:
    """An agent read as many messages as its join wants, of those that were sent."""
    member, text = graph.members[number], result.agents[f"n{number}"].text
    sharers = {edge.sharer for edge in brought if edge.receiver == number}
    if member.fails and not member.each:
        assert text == f"[{number}.1|default]"
        return
    if member.does in ("edit", "answer"):
        assert text == f"[{number}.1|{member.does}]"
        return
    count = len(sharers)
    if member.join != "all":
        count = min(count, 1 if member.join == "any" else member.join["first"])
    for words in text.split("\n\n"):
        if words.endswith("|default]"):
            continue
        refs = words[1:-1].partition("|")[2]
        read = {int(ref.partition(".")[0]) for ref in refs.split(",") if ref}
        assert read <= sharers and len(read) == count
        assert set(read_in(words)) <= {f"{number}.1", *(f"{number}.1.{row}" for row in ROWS)}


def require_effects(world: World, result: RunResult, places: set[str]) -> None:
    """Every effect once, or told as unknown, and no other ones."""
    told = {call.arguments["place"] for call in result.report.unknown_calls}
    assert len(set(world.effects)) == len(world.effects)
    assert set(world.effects) | told == places


@st.composite
def loops(draw: st.DrawFn) -> tuple[RoundCase, frozenset[int], frozenset[int]]:
    """Rounds, with turns that fail, agents that call a tool and agents whose words are approved."""
    case = draw(round_cases())
    agents = range(len(case.limits))
    failing = draw(st.frozensets(st.tuples(st.sampled_from(agents), st.integers(1, 3)), max_size=3))
    does = {n: draw(st.sampled_from(["nothing", "tool", "tool", "ask"])) for n in agents}
    acts = frozenset(n for n in agents if does[n] == "tool")
    asks = frozenset(n for n in agents if does[n] == "ask")
    # The dataflow takes other loops too; a workflow refuses an edge that closes no cycle.
    edges = tuple(edge for edge in case.edges if not edge[2] or edge[0] in case.after(edge[1]))
    return RoundCase(case.limits, edges, case.silent, failing), acts, asks


@LOOKS
@given(drawn=loops(), interruptions=interruptions, cache=st.booleans())
def test_interrupted_loops_end_as_the_sequential_model_says(
    drawn: Any, interruptions: Any, cache: bool
) -> None:
    """The same turns read the same, whatever happens to the process, and act once."""
    case, acts, asks = drawn
    failures = {f"{agent}.{turn}": 9 for agent, turn in case.failing}
    world = World(calls=acts, failures=failures, late=acts)
    MODEL.answers = world.words
    turns, _ = Sequential(case).run()
    with tempfile.TemporaryDirectory() as folder:
        result = to_end(
            _looping(case, world, asks, cache=cache), world, Path(folder), interruptions
        )
    expected = {
        f"n{agent}": tuple(
            f"[{agent}.{turn}|{','.join(sorted(set(inbox.values())))}]"
            for turn, inbox, _ in told
            if (agent, turn) not in case.failing
        )
        for agent, told in turns.items()
    }
    wrote = {name: agent.turns for name, agent in result.agents.items()}
    assert wrote == {name: texts for name, texts in expected.items() if texts}
    places = {f"{agent}.{turn}" for agent in acts & turns.keys() for turn, _, _ in turns[agent]}
    require_effects(world, result, places)


def _looping(case: RoundCase, world: World, asks: frozenset[int], *, cache: bool) -> Workflow:
    act = world.act
    agents = [
        Agent(
            f"n{number}",
            MODEL,
            prompt="Go {{ turn }}!",
            generate=FEW,
            memory="turn",
            max_turns=limit,
            on_error="skip",
            tools=[act] if number in world.calls else [],
            ask="approve" if number in asks else None,
        )
        for number, limit in enumerate(case.limits)
    ]
    flow = Workflow("loops", agents, inputs={"rows": "list"})
    for key, (sharer, receiver, loop) in enumerate(case.edges):
        turns = [turn for edge, turn in sorted(case.silent) if edge == key]
        silent = [f"'[{sharer}.{turn}|' in n{sharer}.text" for turn in turns]
        flow.connect(
            f"n{sharer}",
            f"n{receiver}",
            "same_model_cache" if cache else "text",
            when=f"not ({' or '.join(silent)})" if silent else None,
            loop=loop,
        )
    return flow
