"""Texts that share a run of words with others."""

from itertools import chain, islice

from unspoken.channels.data.overlap import sharing
from unspoken.channels.data.passages import fact_passages, unseen_passages
from unspoken.channels.data.rows import unseen_contexts


def test_eight_words_in_a_row_are_found_in_any_case() -> None:
    """Punctuation does not count; seven words do not."""
    text = "One two, three four: five six seven (eight) nine."
    other = "and TWO three four five six seven eight nine again"
    assert sharing([text, "nothing of it"], [other]) == {0}
    assert sharing([text], ["one two three four five six seven of nine"]) == frozenset()
    assert sharing(["too short"], ["too short"]) == frozenset()


def test_built_in_contexts_share_nothing_with_what_every_fit_generates() -> None:
    """Their kinds are written apart; each has questions that it answers."""
    passages = list(islice(unseen_passages(5), 60))
    fitted = (passage.text for passage in islice(fact_passages(0), 200))
    assert len(sharing([passage.text for passage in passages], chain(fitted))) <= 1
    rows = unseen_contexts(20, seed=3)
    assert len({row.context for row in rows}) == 20
    assert all(row.answers[0] in row.context for row in rows)
