"""Invented names and values, which no model can have read anywhere."""

import random
import uuid
from collections.abc import Callable

__all__ = ["MAKERS", "invent", "words"]


def words(text: str) -> list[str]:
    """The words of a text: a list that reads well in source."""
    return text.split()


ONSETS = words("b br c ch d dr f fl g gl h j k kr l m n p pr r s sh sk st t th tr v vl w y z")
VOWELS = words("a a e e i o o u ae ei ia ou")
CODAS = ["", "", "", *words("l n r s m nd rk th lt sk x")]
FIRSTS = words(
    "Ada Amir Anneke Aoife Bashir Beatriz Bram Carys Chidi Dagny Davit Delia Edda Emeka Farid "
    "Fenna Goran Greta Hana "
    "Henrik Ilse Imani Ivo Jaro Jun Kaya Kenji Lara Leif Lucía Mads Marit Mei Milo Nadia Nils Noor "
    "Olu Orla Pavel "
    "Petra Quinn Rafa Rana Rosa Samir Sefa Signe Tariq Tove Uma Viktor Wanda Xia Yusuf Zora"
)
PLACE_ENDS = words(
    "holm ford wick by stead haven mere dorf ov ia ara bury moor gate ness port vale"
)
HUES = words(
    "red blue green grey white black amber teal violet crimson ochre indigo ivory maroon olive "
    "copper silver coral "
    "lilac mustard"
)
SHADES = words("pale dark bright dull smoky dusty deep faded glossy mottled")
TRADES = words(
    "baker surveyor clerk pilot welder archivist nurse mason tailor botanist bookbinder locksmith "
    "printer forester "
    "cartographer beekeeper glazier ferryman translator stonecutter cook dentist accountant "
    "puppeteer goldsmith"
)
RANKS = words(
    "night harbor chief junior travelling court village deputy retired railway palace ship's"
)
THINGS = words(
    "lantern kettle violin ledger compass blanket barometer chisel teapot saddle globe telescope "
    "mirror hammock "
    "typewriter anvil accordion cabinet trunk clock rug bell sextant loom vase"
)
STUFFS = words("brass oak pewter linen walnut iron leather bamboo marble felt enamel copper wicker")
MONTHS = words(
    "January February March April May June July August September October November December"
)
COINS = words("crowns florins dollars euros marks rupees pesos thalers francs shillings dinars")
FOODS = words(
    "barley lentils quince fennel walnuts buttermilk plums millet leeks honey saffron chestnuts "
    "turnips trout "
    "cheese flour cherries juniper pears sorrel figs mushrooms cabbage"
)
BEASTS = words("Herons Badgers Otters Falcons Lynxes Ravens Stoats Pikes Bison Martens Owls Wolves")
WORDS = words(
    "anchor basil candle dragon ember falcon garnet hollow island jasmine kettle lemon marble "
    "nickel orchid pepper "
    "quartz ribbon saddle timber umbrella velvet walnut yonder zephyr"
)
SCENES = words("winter harvest ferry orchard window silence river mountain letter garden")


def _stem(rng: random.Random, least: int = 2) -> str:
    """A made-up word of two or three syllables."""
    count = rng.choice((least, least, least + 1))
    parts = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(count)]
    return "".join(parts) + rng.choice(CODAS)


def _name(rng: random.Random) -> str:
    return _stem(rng).capitalize()


def _person(rng: random.Random) -> str:
    first = rng.choice(FIRSTS) if rng.random() < 0.7 else _name(rng)
    title = rng.choice(("Dr ", "Captain ", "Professor ")) if rng.random() < 0.08 else ""
    return f"{title}{first} {_name(rng)}"


def _place(rng: random.Random) -> str:
    return (_stem(rng, 1) + rng.choice(PLACE_ENDS)).capitalize()


def _firm(rng: random.Random) -> str:
    ends = ("Works", "& Sons", "Institute", "Trading Company", "Press", "Mills", "Foundation")
    return f"{_name(rng)} {rng.choice(ends)}"


def _date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.choice(MONTHS), rng.randint(1790, 2090)
    forms = (f"{day} {month} {year}", f"{month} {day}, {year}", f"{day} {month}")
    return rng.choice((*forms, f"{year}-{MONTHS.index(month) + 1:02}-{day:02}"))


def _time(rng: random.Random) -> str:
    hour, minute = rng.randint(0, 23), rng.randint(1, 59)
    half = "a.m." if hour < 12 else "p.m."
    return rng.choice((f"{hour:02}:{minute:02}", f"{hour % 12 or 12}:{minute:02} {half}"))


def _count(rng: random.Random) -> str:
    number = rng.choice((rng.randint(13, 99), rng.randint(100, 999), rng.randint(1000, 89999)))
    return f"{number:,}" if rng.random() < 0.7 else str(number)


def _money(rng: random.Random) -> str:
    amount = rng.choice((rng.randint(13, 999), rng.randint(1000, 99999)))
    if rng.random() < 0.3:
        return f"{rng.choice('$€£¥')}{amount:,}.{rng.randint(1, 99):02}"
    return f"{amount:,} {rng.choice(COINS)}"


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=rng.randint(2, 3)))
    return f"{letters}-{rng.randint(100, 99999)}"


def _password(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return f"{rng.choice(WORDS)}-{rng.choice(WORDS)}-{rng.randint(10, 999)}"
    return "".join(rng.choices("abcdefghjkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=10))


def _spot(rng: random.Random) -> str:
    north, east = rng.uniform(0.1, 89), rng.uniform(0.1, 179)
    if rng.random() < 0.5:
        return f"{north:.3f}° {rng.choice('NS')}, {east:.3f}° {rng.choice('EW')}"
    return f"{int(north)}°{rng.randint(1, 59)}'{rng.choice('NS')} {int(east)}°{rng.randint(1, 59)}'{rng.choice('EW')}"


def _measure(*units: str) -> Callable[[random.Random], str]:
    """A maker of decimal quantities in one of the units."""
    return lambda rng: f"{rng.uniform(1, 990):.{rng.choice((1, 2))}f} {rng.choice(units)}"


def _span(rng: random.Random) -> str:
    return f"{rng.randint(13, 120)} {rng.choice(('days', 'weeks', 'months', 'hours', 'minutes'))}"


def _pair(first: list[str], second: list[str]) -> Callable[[random.Random], str]:
    """A maker of two words, one of each list."""
    return lambda rng: f"{rng.choice(first)} {rng.choice(second)}"


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "person": _person,
    "place": _place,
    "firm": _firm,
    "name": _name,
    "ship": lambda rng: (
        f"{rng.choice(('Queen', 'Star', 'Lady', 'Spirit', 'Pride'))} of {_place(rng)}"
    ),
    "team": lambda rng: f"{_place(rng)} {rng.choice(BEASTS)}",
    "title": lambda rng: f"The {rng.choice(SCENES).capitalize()} of {_place(rng)}",
    "substance": lambda rng: _stem(rng) + rng.choice(("ite", "ium", "ene", "ol", "ase", "ine")),
    "year": lambda rng: str(rng.randint(1301, 2099)),
    "date": _date,
    "time": _time,
    "count": _count,
    "money": _money,
    "code": _code,
    "uuid": lambda rng: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
    "password": _password,
    "spot": _spot,
    "length": _measure("metres", "kilometres", "miles", "feet"),
    "height": _measure("metres", "feet", "yards"),
    "weight": _measure("kilograms", "grams", "pounds", "tonnes"),
    "volume": _measure("litres", "millilitres", "gallons"),
    "heat": lambda rng: f"{rng.uniform(-80, 900):.1f} °{rng.choice('CCF')}",
    "span": _span,
    "colour": _pair(SHADES, HUES),
    "job": _pair(RANKS, TRADES),
    "thing": _pair(STUFFS, THINGS),
    "food": _pair(words("wild roasted salted mountain sweet pickled ground fresh"), FOODS),
    "mail": lambda rng: f"{_stem(rng)}.{_stem(rng, 1)}@{_stem(rng)}.example",
    "phone": lambda rng: f"{rng.randint(200, 999)}-555-{rng.randint(1000, 9999)}",
    "score": lambda rng: f"{rng.randint(21, 99)}–{rng.randint(11, 88)}",
    "word": lambda rng: f"{rng.choice(WORDS)} {rng.choice(WORDS)}",
}
"""What can be invented, by the name that the slots of a template use."""


def invent(rng: random.Random, maker: str, used: set[str]) -> str:
    """A value that is not in `used` yet, which takes it in."""
    while True:
        value = MAKERS[maker](rng)
        if value not in used:
            used.add(value)
            return value
