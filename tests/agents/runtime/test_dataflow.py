"""When agents fire: joins, skips, loops and their waves."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.agents.runtime.dataflow import Dataflow, Exhausted, Firing, Skipped, Unread
from unspoken.agents.spec.graph import build_graph
from unspoken.agents.spec.spec import WorkflowSpec


def dataflow(agents: dict[str, dict[str, Any]] | str, *edges: str) -> "Dataflow[str]":
    """A dataflow of agents (names, or with settings) and edges ``a->b``; a loop is ``a=>b``."""
    settings = {name: {} for name in agents.split()} if isinstance(agents, str) else agents
    rows = []
    for edge in edges:
        loop = "=>" in edge
        sharer, receiver = edge.split("=>" if loop else "->")
        rows.append({"from": sharer, "to": receiver, "loop": loop})
    spec = WorkflowSpec.model_validate(
        {
            "name": "test",
            "models": {"m": {"ref": "x"}},
            "agents": {
                name: {"model": "m", "prompt": "p", **one} for name, one in settings.items()
            },
            "edges": rows,
        }
    )
    return Dataflow(build_graph(spec))


def sole(actions: list[Any]) -> "Firing[str]":
    """The one firing that is all that happened."""
    (firing,) = actions
    assert isinstance(firing, Firing)
    return firing


def fired(actions: list[Any]) -> list[str]:
    return [one.agent for one in actions if isinstance(one, Firing)]


def test_agents_without_in_edges_fire_at_the_start() -> None:
    """What waits for nothing fires first, and nothing else does."""
    flow = dataflow("a b c", "a->c")
    assert fired(flow.start()) == ["a", "b"]


def test_a_join_waits_for_every_in_edge() -> None:
    """With join: all, the last message fires the agent, with both in the edges' order."""
    flow = dataflow("a b c", "b->c", "a->c")
    flow.start()
    assert flow.complete("a", {1: "from a"}) == []
    firing = sole(flow.complete("b", {0: "from b"}))
    assert firing == Firing("c", 1, {0: "from b", 1: "from a"}, frozenset({0, 1}))


def test_join_any_fires_at_the_first_message_and_once() -> None:
    """With join any, the first message fires, and the later one is given back as unread."""
    flow = dataflow({"a": {}, "b": {}, "c": {"join": "any"}}, "a->c", "b->c")
    flow.start()
    assert fired(flow.complete("b", {1: "early"})) == ["c"]
    assert flow.complete("a", {0: "late"}) == [Unread(0, "late", late=True)]


def test_join_any_is_not_put_off_by_a_skip() -> None:
    """A skip is no message: join any goes on waiting for one."""
    flow = dataflow({"a": {}, "b": {}, "c": {"join": "any"}}, "a->c", "b->c")
    flow.start()
    assert flow.complete("a", {0: None}) == []
    firing = sole(flow.complete("b", {1: "x"}))
    assert firing.inbox == {1: "x"}


def test_nothing_but_skips_is_a_skip_that_is_passed_on() -> None:
    """An agent all of whose edges skip is skipped, and so are those that read it alone."""
    flow = dataflow("a b c d", "a->c", "b->c", "c->d")
    flow.start()
    assert flow.complete("a", {0: None}) == []
    assert flow.complete("b", {1: None}) == [Skipped("c"), Skipped("d")]


def test_one_message_among_skips_fires() -> None:
    """Skips beside a message leave the join with that message."""
    flow = dataflow("a b c", "a->c", "b->c")
    flow.start()
    flow.complete("a", {0: None})
    firing = sole(flow.complete("b", {1: "x"}))
    assert firing.inbox == {1: "x"}


def test_a_passed_on_skip_completes_a_join_that_holds_a_message() -> None:
    """A skip that arrives over a skipped agent counts like any other."""
    flow = dataflow("a b c", "a->b", "a->c", "b->c")
    flow.start()
    actions = flow.complete("a", {0: None, 1: "x"})
    assert actions == [Skipped("b"), Firing("c", 1, {1: "x"}, frozenset({1}))]


def test_a_loop_fires_its_target_again_with_the_standing_messages() -> None:
    """The second turn has the loop's message as new and the source's as standing."""
    flow = dataflow({"s": {}, "a": {"max_turns": 2}, "b": {}}, "s->a", "a->b", "b=>a")
    flow.start()
    flow.complete("s", {0: "source"})
    flow.complete("a", {1: "draft"})
    firing = sole(flow.complete("b", {2: "critique"}))
    assert firing == Firing("a", 2, {0: "source", 2: "critique"}, frozenset({2}))


def test_a_loop_ends_when_its_target_had_all_its_turns() -> None:
    """The message past max_turns is dropped, with its item, and nobody fires."""
    flow = dataflow({"a": {"max_turns": 2}, "b": {}}, "a->b", "b=>a")
    flow.start()
    flow.complete("a", {0: "draft 1"})
    flow.complete("b", {1: "critique 1"})
    flow.complete("a", {0: "draft 2"})
    assert flow.complete("b", {1: "critique 2"}) == [Exhausted(1, "a", "critique 2")]


def test_a_loop_that_sends_a_skip_ends_quietly() -> None:
    """A false condition on a loop edge starts no wave."""
    flow = dataflow({"a": {"max_turns": 9}, "b": {}}, "a->b", "b=>a")
    flow.start()
    flow.complete("a", {0: "draft"})
    assert flow.complete("b", {1: None}) == []


def test_a_self_loop_takes_all_turns_and_no_more() -> None:
    """An agent may go on from its own words."""
    flow = dataflow({"a": {"max_turns": 3}}, "a=>a")
    flow.start()
    assert [fired(flow.complete("a", {0: str(n)})) for n in range(3)] == [["a"], ["a"], []]


def test_a_diamond_in_a_loop_waits_for_the_messages_of_its_own_wave() -> None:
    """A new wave waits for the old one, so its join never mixes the messages of two waves."""
    flow = dataflow(
        {"a": {"max_turns": 2}, "b": {}, "c": {}, "d": {}},
        *("a->b", "a->c", "b->d", "c->d", "b=>a"),
    )
    flow.start()
    flow.complete("a", {0: "a1", 1: "a1"})
    assert flow.complete("b", {2: "b1", 4: "again"}) == []
    join = sole(flow.complete("c", {3: "c1"}))
    assert join.inbox == {2: "b1", 3: "c1"}
    assert fired(flow.complete("d", {})) == ["a"]
    assert fired(flow.complete("a", {0: "a2", 1: "a2"})) == ["b", "c"]
    assert flow.complete("c", {3: "c2"}) == []
    join = sole(flow.complete("b", {2: "b2", 4: "again"}))
    assert (join.turn, join.inbox) == (2, {2: "b2", 3: "c2"})


def test_a_wave_of_skips_does_not_fire_on_what_stands() -> None:
    """An agent is skipped in a second wave although the first wave's message still stands."""
    flow = dataflow({"a": {"max_turns": 2}, "b": {}}, "a->b", "a=>a")
    flow.start()
    flow.complete("a", {0: "x", 1: "again"})
    flow.complete("b", {})
    assert flow.complete("a", {0: None, 1: None}) == [Skipped("b")]


def test_two_loops_into_one_agent_start_one_wave_together() -> None:
    """Two critics of one draft lead to one new draft that reads both."""
    flow = dataflow({"a": {"max_turns": 2}, "b": {}, "c": {}}, *("a->b", "a->c", "b=>a", "c=>a"))
    flow.start()
    flow.complete("a", {0: "x", 1: "x"})
    assert flow.complete("b", {2: "b"}) == []
    firing = sole(flow.complete("c", {3: "c"}))
    assert firing == Firing("a", 2, {2: "b", 3: "c"}, frozenset({2, 3}))


def test_two_agents_that_loop_to_each_other_take_turns_side_by_side() -> None:
    """Debaters that are ready together share a wave, and their judge hears both of one round."""
    flow = dataflow(
        {"a": {"max_turns": 2}, "b": {"max_turns": 2}, "j": {}}, *("a->j", "b->j", "a=>b", "b=>a")
    )
    flow.start()
    flow.complete("a", {0: "a1", 2: "a1"})
    assert fired(flow.complete("b", {1: "b1", 3: "b1"})) == ["j"]
    assert fired(flow.complete("j", {})) == ["a", "b"]
    assert flow.complete("a", {0: "a2", 2: "a2"}) == []
    actions = flow.complete("b", {1: "b2", 3: "b2"})
    assert actions[0] == Firing("j", 2, {0: "a2", 1: "b2"}, frozenset({0, 1}))


def test_an_inner_loop_is_done_before_the_outer_one_goes_on() -> None:
    """Of two loops that wait, the one inside the other's region goes first."""
    flow = dataflow(
        {"o": {"max_turns": 2}, "i": {"max_turns": 9}, "e": {}}, *("o->i", "i->e", "e=>i", "e=>o")
    )
    flow.start()
    flow.complete("o", {0: "o"})
    flow.complete("i", {1: "i"})
    assert fired(flow.complete("e", {2: "inner", 3: "outer"})) == ["i"]
    flow.complete("i", {1: "i"})
    assert fired(flow.complete("e", {2: None, 3: None})) == ["o"]


def test_a_loop_waits_for_a_target_that_has_not_fired_yet() -> None:
    """A loop's message never stands in for the forward message that its target still waits for."""
    flow = dataflow(
        {"slow": {}, "a": {"max_turns": 2}, "b": {"max_turns": 2}}, *("slow->a", "a=>b", "b=>a")
    )
    assert fired(flow.start()) == ["slow", "b"]
    assert flow.complete("b", {2: "early"}) == []
    firing = sole(flow.complete("slow", {0: "source"}))
    assert firing == Firing("a", 1, {0: "source"}, frozenset({0}))


def test_a_message_that_comes_too_late_for_its_round_is_given_back() -> None:
    """A late message of a join any is of its round alone: the next one does not read it."""
    flow = dataflow(
        {"a": {"max_turns": 2}, "b": {}, "c": {}, "d": {"join": "any"}},
        *("a->b", "a->c", "b->d", "c->d", "a=>a"),
    )
    flow.start()
    flow.complete("a", {0: "1", 1: "1", 4: "again"})
    flow.complete("b", {2: "b1"})
    flow.complete("d", {})
    unread, again = flow.complete("c", {3: "c1 is late"})
    assert (unread, fired([again])) == (Unread(3, "c1 is late", late=True), ["a"])
    flow.complete("a", {0: "2", 1: "2", 4: None})
    assert flow.complete("c", {3: "c2"}) == [Firing("d", 2, {3: "c2"}, frozenset({3}))]


def test_last_turn_is_true_without_loops_and_false_while_a_loop_may_come() -> None:
    """Only an agent in the region of a loop with turns left may fire again."""
    flow = dataflow({"s": {}, "a": {"max_turns": 2}, "b": {}}, "s->a", "a->b", "b=>a")
    flow.start()
    flow.complete("s", {0: "x"})
    assert [flow.last_turn(name) for name in "sab"] == [True, False, False]
    flow.complete("a", {1: "x"})
    flow.complete("b", {2: "x"})
    assert [flow.last_turn(name) for name in "sab"] == [True, True, True]


@st.composite
def _graphs(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[Any]]:
    size = draw(st.integers(1, 7))
    pairs = [(a, b) for b in range(size) for a in range(b)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    joins: list[Any] = []
    for agent in range(size):
        read = sum(receiver == agent for _, receiver in edges)
        firsts = [{"first": count} for count in range(1, read + 1)]
        joins.append(draw(st.sampled_from(["all", "any", *firsts])))
    return edges, joins


def play(
    flow: "Dataflow[str]",
    sends: Callable[[Firing[str]], Mapping[int, str | None]],
    pick: Callable[[int], int],
) -> list[Any]:
    """Run to the end, in an order that `pick` chooses. Returns everything that happened."""
    log = list(flow.start())
    running = deque(one for one in log if isinstance(one, Firing))
    while running:
        running.rotate(-pick(len(running)))
        firing = running.popleft()
        actions = flow.complete(firing.agent, sends(firing))
        log += actions
        running += [one for one in actions if isinstance(one, Firing)]
        busy = [one.agent for one in running]
        assert len(busy) == len(set(busy)), "an agent runs twice at a time"
    return log


@given(graph=_graphs(), data=st.data())
def test_every_agent_of_a_dag_fires_or_is_skipped_exactly_once(
    graph: tuple[list[tuple[int, int]], list[Any]], data: st.DataObject
) -> None:
    """Whatever edges skip and whoever finishes first, nobody hangs and nobody goes twice."""
    edges, joins = graph
    agents = {f"n{index}": {"join": join} for index, join in enumerate(joins)}
    flow = dataflow(agents, *(f"n{a}->n{b}" for a, b in edges))

    def sends(firing: Firing[str]) -> dict[int, str | None]:
        out = [n for n, (a, _) in enumerate(edges) if f"n{a}" == firing.agent]
        return {n: data.draw(st.sampled_from(["x", None])) for n in out}

    log = play(flow, sends, lambda size: data.draw(st.integers(0, size - 1)))
    settled = Counter(one.agent for one in log if isinstance(one, Firing | Skipped))
    assert settled == Counter(agents.keys())
    late = Counter(edges[one.edge][1] for one in log if isinstance(one, Unread))
    for one in log:
        if isinstance(one, Firing) and isinstance(joins[int(one.agent[1:])], dict):
            first = joins[int(one.agent[1:])]["first"]
            assert len(one.inbox) <= first
            assert len(one.inbox) == first or not late[int(one.agent[1:])]


@given(graph=_graphs(), data=st.data())
def test_random_loops_end_and_never_mix_waves(
    graph: tuple[list[tuple[int, int]], list[Any]], data: st.DataObject
) -> None:
    """With loops over a random DAG, runs end, and a join reads one wave's messages only."""
    edges, _ = graph
    target = data.draw(st.integers(0, len(graph[1]) - 1))
    agents: dict[str, dict[str, Any]] = {f"n{index}": {} for index in range(len(graph[1]))}
    agents[f"n{target}"] = {"max_turns": 3}
    reach = {target}
    for a, b in sorted(edges):
        reach |= {b} if a in reach else set()
    closing = data.draw(st.sampled_from(sorted(reach)))
    flow = dataflow(agents, *(f"n{a}->n{b}" for a, b in edges), f"n{closing}=>n{target}")

    def sends(firing: Firing[str]) -> dict[int, str | None]:
        out: dict[int, str | None] = {
            n: str(firing.turn) for n, (a, _) in enumerate(edges) if f"n{a}" == firing.agent
        }
        return out | ({len(edges): "again"} if firing.agent == f"n{closing}" else {})

    log = play(flow, sends, lambda size: data.draw(st.integers(0, size - 1)))
    for one in log:
        if isinstance(one, Firing):
            index = int(one.agent[1:])
            inside = {
                item
                for key, item in one.inbox.items()
                if key < len(edges) and edges[key][0] in reach and index in reach
            }
            assert inside <= {str(one.turn)}
    turns = Counter(one.agent for one in log if isinstance(one, Firing))
    assert turns == {name: 3 if int(name[1:]) in reach else 1 for name in agents}


def test_an_edge_to_no_agent_is_refused() -> None:
    """A dataflow is only made of a graph whose edges have ends."""
    with pytest.raises(Exception, match="there is no agent 'z'"):
        dataflow("a", "a->z")
