"""The index of prefixes says what a comparison with every state says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.agents.engines.pool import prefixes
from unspoken.agents.engines.pool.prefixes import PrefixTree
from unspoken.channels.message import common_prefix

few = st.lists(st.integers(0, 2), max_size=9).map(tuple)


def common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    pairs = zip(left, right, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


@given(few, few)
def test_the_common_prefix_is_that_of_a_walk(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    """Halving finds what a walk finds."""
    assert common_prefix(left, right) == common(left, right)


@given(st.lists(st.tuples(few.filter(bool), st.booleans()), max_size=12), few, st.integers(0, 4))
def test_the_longest_prefix_is_that_of_a_search(
    steps: list[tuple[tuple[int, ...], bool]], ids: tuple[int, ...], more_than: int
) -> None:
    """After any puts and removals; what may not serve, or is too short, is passed over."""
    tree: PrefixTree[int] = PrefixTree()
    states: dict[int, tuple[int, ...]] = {}
    for number, (context, remove) in enumerate(steps):
        tree.add(number, context)
        states[number] = context
        if remove:
            gone = next(iter(states))
            tree.remove(gone, states.pop(gone))

    def serving(number: int, tokens: int) -> int:
        """Some serve whole alone, some as far as a snapshot, the others as far as is asked."""
        whole = tokens == len(states[number])
        return (tokens * whole, tokens, min(tokens, 2))[number % 3]

    lengths = {n: common(context, ids) for n, context in states.items()}
    fitting = [serving(n, length) for n, length in lengths.items() if length]
    best = max(fitting, default=0)
    found = tree.longest(ids, more_than, serving)
    assert (0 if found is None else found[1]) == (best if best > more_than else 0)
    if found is not None:
        assert serving(found[0], lengths[found[0]]) == found[1]
    assert bool(tree) == bool(states)


def test_thousands_of_states_are_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among four thousand states of one document, a context is compared with two runs of ids."""
    document = tuple(range(3000))
    tree: PrefixTree[int] = PrefixTree()
    for number in range(4000):
        tree.add(number, (*document, 5000 + number, *range(20)))
    looks = list[str]()

    def compared(left: tuple[int, ...], right: tuple[int, ...]) -> int:
        looks.append("run")
        return common_prefix(left, right)

    def serving(entry: int, tokens: int) -> int:
        looks.append("state")
        return tokens

    monkeypatch.setattr(prefixes, "common_prefix", compared)
    assert tree.longest((*document, 8999, 7), 0, serving) == (3999, 3001)
    assert tree.longest((*document, 5000, 7), 0, serving) == (0, 3001)
    assert looks == 2 * ["run", "run", "state"]
