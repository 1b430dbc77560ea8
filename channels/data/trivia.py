"""Common knowledge, as tables from which questions with four options are made."""

import random
from collections.abc import Callable, Sequence

from blake3 import blake3

from unspoken.channels.data.wording import trivia, values

HELD_OUT = 6
"""One of so many questions of common knowledge is kept back."""

_Asked = tuple[str, str, Sequence[str]]
"""A question, its answer, and what other options are drawn from."""


def kept_back(question: str, answer: str) -> bool:
    """Whether no fuser is trained on a question: only validation and built-in rows ask it."""
    return blake3(f"{question}\n{answer}".encode()).digest()[0] % HELD_OUT == 0


def common_question(rng: random.Random) -> tuple[str, tuple[str, ...], int]:
    """A question, four options in random order, and the index of the right one."""
    question, right, others = rng.choice(RULES)(rng)
    options = [right, *rng.sample([option for option in others if option != right], 3)]
    rng.shuffle(options)
    return question, tuple(options), options.index(right)


def _capital(rng: random.Random) -> _Asked:
    capitals = trivia().capitals
    land, city = rng.choice(list(capitals.items()))
    return f"What is the capital of {land}?", city, list(capitals.values())


def _land(rng: random.Random) -> _Asked:
    capitals = trivia().capitals
    land, city = rng.choice(list(capitals.items()))
    return f"Of which country is {city} the capital?", land, list(capitals)


def _order(rng: random.Random) -> _Asked:
    months = values().lists["months"]
    names, unit = rng.choice(((trivia().days, "day of the week"), (months, "month")))
    place, (step, word) = rng.randrange(len(names)), rng.choice(((1, "after"), (-1, "before")))
    right = names[(place + step) % len(names)]
    others = [name for name in names if name != names[place]]
    return f"Which {unit} comes right {word} {names[place]}?", right, others


def _sum(rng: random.Random) -> _Asked:
    a, b = rng.randint(2, 60), rng.randint(2, 30)
    question, right = rng.choice(
        (
            (f"What is {a} plus {b}?", a + b),
            (f"What is {a + b} minus {b}?", a),
            (f"What is {a % 10 + 2} times {b % 10 + 2}?", (a % 10 + 2) * (b % 10 + 2)),
        )
    )
    near = [str(right + step) for step in (-10, -3, -2, -1, 1, 2, 3, 10) if right + step > 0]
    return question, str(right), near


def _opposite(rng: random.Random) -> _Asked:
    listed = trivia().opposites.items()
    pairs = [*listed, *((right, left) for left, right in listed)]
    word, opposite = rng.choice(pairs)
    return f"What is the opposite of {word}?", opposite, [left for left, _ in pairs if left != word]


def _member(rng: random.Random) -> _Asked:
    groups = trivia().groups
    group = rng.choice(list(groups))
    others = [member for name, members in groups.items() if name != group for member in members]
    return f"Which of these is {group}?", rng.choice(groups[group]), others


def _property(rng: random.Random) -> _Asked:
    question, right = rng.choice(list(trivia().properties.items()))
    return question, right, trivia().colours


RULES: tuple[Callable[[random.Random], _Asked], ...] = (
    _capital,
    _land,
    _order,
    _sum,
    _opposite,
    _member,
    _property,
)
