"""Common knowledge, as tables from which questions with four options are made."""

import random
from collections.abc import Callable

from blake3 import blake3

from unspoken.channels.data.values import words

__all__ = ["common_question", "kept_back"]

HELD_OUT = 6
"""One of so many questions of common knowledge is kept back."""

CAPITALS = dict(
    pair.split(":")
    for pair in words(
        "France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon Austria:Vienna "
        "Greece:Athens "
        "Poland:Warsaw Hungary:Budapest Ireland:Dublin Norway:Oslo Sweden:Stockholm "
        "Finland:Helsinki "
        "Denmark:Copenhagen Iceland:Reykjavik Russia:Moscow Turkey:Ankara Egypt:Cairo "
        "Kenya:Nairobi Ghana:Accra "
        "Nigeria:Abuja Ethiopia:Addis_Ababa Morocco:Rabat Japan:Tokyo China:Beijing "
        "India:New_Delhi Thailand:Bangkok "
        "Vietnam:Hanoi Iran:Tehran Iraq:Baghdad Canada:Ottawa Cuba:Havana Peru:Lima Chile:Santiago "
        "Argentina:Buenos_Aires Brazil:Brasília Australia:Canberra Belgium:Brussels Ukraine:Kyiv "
        "Romania:Bucharest"
    )
)
OPPOSITES = dict(
    pair.split(":")
    for pair in words(
        "hot:cold big:small fast:slow high:low wet:dry light:dark open:closed early:late "
        "full:empty rich:poor "
        "happy:sad hard:soft old:young strong:weak thick:thin noisy:quiet"
    )
)
GROUPS = {
    "a bird": words("sparrow eagle penguin owl ostrich"),
    "a fish": words("salmon trout tuna cod herring"),
    "an insect": words("bee ant beetle butterfly mosquito"),
    "a mammal": words("whale bat horse elephant mouse"),
    "a reptile": words("snake lizard crocodile turtle gecko"),
    "a fruit": words("apple banana cherry pear mango"),
    "a tool": words("hammer saw screwdriver wrench chisel"),
    "a musical instrument": words("violin piano trumpet flute drum"),
}
PROPERTIES = {
    "What colour is fresh snow?": "white",
    "What colour is ripe banana peel?": "yellow",
    "What colour is grass in spring?": "green",
    "What colour is blood?": "red",
    "What colour is coal?": "black",
    "What colour is a clear sky at noon?": "blue",
    "What colour is a ripe carrot?": "orange",
    "What colour do you get by mixing blue and red paint?": "purple",
}
COLOURS = words("white yellow green red black blue orange purple")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words(
    "January February March April May June July August September October November December"
)

Made = tuple[str, str, list[str]]


def kept_back(question: str, answer: str) -> bool:
    """Whether nothing is trained on a question, so that held-out lessons and built-in rows may ask
    it.
    """
    return blake3(f"{question}\n{answer}".encode()).digest()[0] % HELD_OUT == 0


def common_question(rng: random.Random) -> tuple[str, tuple[str, ...], int]:
    """A question, four options in random order, and the index of the right one."""
    question, right, others = rng.choice(RULES)(rng)
    options = [right, *rng.sample([one for one in others if one != right], 3)]
    rng.shuffle(options)
    return question, tuple(options), options.index(right)


def _capital(rng: random.Random) -> Made:
    land, city = rng.choice(list(CAPITALS.items()))
    cities = [name.replace("_", " ") for name in CAPITALS.values()]
    return f"What is the capital of {land}?", city.replace("_", " "), cities


def _land(rng: random.Random) -> Made:
    land, city = rng.choice(list(CAPITALS.items()))
    return f"Of which country is {city.replace('_', ' ')} the capital?", land, list(CAPITALS)


def _order(rng: random.Random) -> Made:
    names, unit = rng.choice(((DAYS, "day of the week"), (MONTHS, "month")))
    place, (step, word) = rng.randrange(len(names)), rng.choice(((1, "after"), (-1, "before")))
    right = names[(place + step) % len(names)]
    others = [name for name in names if name != names[place]]
    return f"Which {unit} comes right {word} {names[place]}?", right, others


def _sum(rng: random.Random) -> Made:
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


def _opposite(rng: random.Random) -> Made:
    pairs = list(OPPOSITES.items()) + [(b, a) for a, b in OPPOSITES.items()]
    word, right = rng.choice(pairs)
    return f"What is the opposite of {word}?", right, [one for one, _ in pairs if one != word]


def _member(rng: random.Random) -> Made:
    group = rng.choice(list(GROUPS))
    others = [one for name, members in GROUPS.items() if name != group for one in members]
    return f"Which of these is {group}?", rng.choice(GROUPS[group]), others


def _property(rng: random.Random) -> Made:
    question, right = rng.choice(list(PROPERTIES.items()))
    return question, right, COLOURS


RULES: tuple[Callable[[random.Random], Made], ...] = (
    _capital,
    _land,
    _order,
    _sum,
    _opposite,
    _member,
    _property,
)
