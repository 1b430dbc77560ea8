"""Whose message stands in for a row's own, so that what is gained is known to be of this message.

A stranger's message is of another context, drawn by the seed. A neighbour's is of another context
too, and about the same: of the same topic where rows have one, else the nearest by its words.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from random import Random

from unspoken.agents.evaluation.rows import EvalRow
from unspoken.agents.evaluation.words import nearest
from unspoken.channels.errors import InputError


def require_contexts(rows: Sequence[EvalRow]) -> None:
    """Refuse rows that are all of one context: none of them has another's message.

    Raises:
        InputError: They are.
    """
    if len({row.context for row in rows}) < 2:
        raise InputError(
            f"{len(rows)} rows of one context",
            expected="rows of two contexts or more, so that a message can be another's",
            fix="give more rows, name the column of contexts, or leave these controls out",
        )


def strangers(rows: Sequence[EvalRow], seed: int) -> dict[str, EvalRow]:
    """For every row, by its id, one of another context.

    Raises:
        InputError: All rows are of one context.
    """
    require_contexts(rows)
    contexts = _by_context(rows)
    names = list(contexts)
    places = {name: place for place, name in enumerate(names)}
    chosen = {}
    for row in rows:
        drawn, own = Random(f"{seed} {row.id}"), places[row.context]
        place = drawn.randrange(len(names) - 1)
        chosen[row.id] = drawn.choice(contexts[names[place + (place >= own)]])
    return chosen


def neighbours(
    rows: Sequence[EvalRow], seed: int, text_of: Callable[[EvalRow], str]
) -> dict[str, EvalRow]:
    """For every row, by its id, one of another context and the same topic, or the nearest one.

    Args:
        rows: The rows.
        seed: Of what is drawn.
        text_of: What of a row its neighbours are near in.

    Raises:
        InputError: All rows are of one context.
    """
    require_contexts(rows)
    about: defaultdict[str, list[EvalRow]] = defaultdict(list)
    contexts = _by_context(rows)
    for row in rows:
        about[row.topic].append(row)
    firsts = [members[0] for members in contexts.values()]
    near = nearest([text_of(row) for row in firsts], [row.context for row in firsts])
    by_words = {row.context: near[n] for n, row in enumerate(firsts)}
    chosen = {}
    for row in rows:
        others = [other for other in about[row.topic] if other.context != row.context]
        at = by_words[row.context]
        if not (row.topic and others) and at is not None:
            others = contexts[firsts[at].context]
        chosen[row.id] = Random(f"{seed} {row.id}").choice(others)
    return chosen


def _by_context(rows: Sequence[EvalRow]) -> dict[str, list[EvalRow]]:
    contexts: defaultdict[str, list[EvalRow]] = defaultdict(list)
    for row in rows:
        contexts[row.context].append(row)
    return dict(contexts)
