"""Rounds of loops: what a join reads, what bounds turns, and a sequential model of it all."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st
from sequential.rounds import RoundCase, Sequential, round_cases


@given(case=round_cases(), data=st.data())
def test_every_order_of_finishing_reads_what_the_sequential_model_reads(
    case: RoundCase, data: st.DataObject
) -> None:
    """Random graphs with joins, conditions, loops and limits agree with one agent at a time."""
    happened = case.in_order(lambda size: data.draw(st.integers(0, size - 1)))
    assert happened == Sequential(case).run()


def turns_of(case: RoundCase) -> dict[int, list[Mapping[int, str]]]:
    """By agent, the inbox of each of its turns."""
    turns, _ = case.in_order(lambda size: 0)
    return {agent: [inbox for _, inbox, _ in told] for agent, told in turns.items()}


def test_a_branch_of_an_earlier_round_is_not_read_again() -> None:
    """The left branch goes in round 1, the right one in round 2: the join reads one at a time."""
    edges = ((0, 1, False), (0, 2, False), (1, 3, False), (2, 3, False), (3, 0, True))
    case = RoundCase((2, None, None, None), edges, frozenset({(0, 2), (1, 1)}))
    assert turns_of(case)[3] == [{2: "1.1"}, {3: "2.1"}]


def test_a_message_from_outside_the_loop_stands() -> None:
    """A source that is not in the loop is read in every round."""
    case = RoundCase((None, 3), ((0, 1, False), (1, 1, True)))
    assert [inbox[0] for inbox in turns_of(case)[1]] == ["0.1"] * 3


def test_a_loop_message_of_an_earlier_round_is_forgotten() -> None:
    """Of two critics that loop back, a new draft reads those that spoke in this round."""
    edges = ((0, 1, False), (0, 2, False), (1, 0, True), (2, 0, True))
    case = RoundCase((3, None, None), edges, frozenset({(3, 1), (2, 2)}))
    assert turns_of(case)[0] == [{}, {2: "1.1"}, {3: "2.2"}]


def test_an_agent_behind_a_loop_keeps_its_last_turn_for_the_end() -> None:
    """A publisher with max_turns 1 reads the last draft alone; so does who follows from it."""
    edges = ((0, 1, False), (1, 0, True), (0, 2, False), (2, 3, False))
    case = RoundCase((3, None, 1, None), edges)
    turns = turns_of(case)
    assert (turns[2], turns[3]) == ([{2: "0.3"}], [{3: "2.1"}])


def test_without_a_limit_an_agent_behind_a_loop_takes_a_turn_a_round() -> None:
    """Only max_turns makes it wait."""
    case = RoundCase((3, None), ((0, 0, True), (0, 1, False)))
    assert turns_of(case)[1] == [{1: "0.1"}, {1: "0.2"}, {1: "0.3"}]


def test_an_agent_inside_a_loop_that_has_no_turn_left_ends_it() -> None:
    """A critic with one turn is skipped in the second round, and the dropped draft is told."""
    case = RoundCase((5, 1), ((0, 1, False), (1, 0, True)))
    turns, ended = case.in_order(lambda size: 0)
    assert ({agent: len(told) for agent, told in turns.items()}, ended) == ({0: 2, 1: 1}, [0])


def test_max_turns_bounds_the_turns_of_nested_loops_together() -> None:
    """An inner loop has its turns in the whole run, not in each round of the outer one."""
    case = RoundCase((3, 4), ((0, 1, False), (1, 1, True), (1, 0, True)))
    turns, ended = case.in_order(lambda size: 0)
    assert len(turns[1]) == 4
    assert 1 in ended


def test_a_long_chain_of_skips_is_no_recursion() -> None:
    """Thousands of agents pass on a skip."""
    size = 3_000
    edges = tuple((n, n + 1, False) for n in range(size - 1))
    case = RoundCase((None,) * size, edges, frozenset({(0, 1)}))
    assert turns_of(case) == {0: [{}]}
