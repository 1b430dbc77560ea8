"""Invented names and values, which no model can have read anywhere."""

import random
import re
import uuid
from collections.abc import Callable
from functools import cache

from unspoken.channels.data.wording import values


@cache
def value_names() -> tuple[str, ...]:
    """What can be invented, by the names that the slots of a template use; sorted."""
    return tuple(sorted({*_MAKERS, *values().patterns, *values().units}))


def invent(rng: random.Random, name: str, used: set[str]) -> str:
    """A value that is not in `used` yet, which takes it in."""
    while True:
        value = _make(rng, name)
        if value not in used:
            used.add(value)
            return value


def _make(rng: random.Random, name: str) -> str:
    """A value by its name; a pattern's slots name lists or values, drawn from left to right."""
    if name in _MAKERS:
        return _MAKERS[name](rng)
    if name in values().units:
        return f"{rng.uniform(1, 990):.{rng.choice((1, 2))}f} {rng.choice(values().units[name])}"
    return re.sub(r"{(\w+)}", lambda slot: _part(rng, slot[1]), values().patterns[name])


def _part(rng: random.Random, name: str) -> str:
    return _draw(rng, name) if name in values().lists else _make(rng, name)


def _draw(rng: random.Random, name: str) -> str:
    """One entry of a list of ``values.yaml``."""
    return rng.choice(values().lists[name])


def _stem(rng: random.Random, least: int = 2) -> str:
    """A made-up word of two or three syllables."""
    count = rng.choice((least, least, least + 1))
    syllables = [_draw(rng, "onsets") + _draw(rng, "vowels") for _ in range(count)]
    return "".join(syllables) + _draw(rng, "codas")


def _name(rng: random.Random) -> str:
    return _stem(rng).capitalize()


def _person(rng: random.Random) -> str:
    first = _draw(rng, "first_names") if rng.random() < 0.7 else _name(rng)
    title = rng.choice(("Dr ", "Captain ", "Professor ")) if rng.random() < 0.08 else ""
    return f"{title}{first} {_name(rng)}"


def _date(rng: random.Random) -> str:
    months = values().lists["months"]
    day, month, year = rng.randint(1, 28), rng.choice(months), rng.randint(1790, 2090)
    forms = (f"{day} {month} {year}", f"{month} {day}, {year}", f"{day} {month}")
    return rng.choice((*forms, f"{year}-{months.index(month) + 1:02}-{day:02}"))


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
    return f"{amount:,} {_draw(rng, 'coins')}"


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=rng.randint(2, 3)))
    return f"{letters}-{rng.randint(100, 99999)}"


def _password(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return f"{_draw(rng, 'words')}-{_draw(rng, 'words')}-{rng.randint(10, 999)}"
    return "".join(rng.choices("abcdefghjkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=10))


def _spot(rng: random.Random) -> str:
    north, east = rng.uniform(0.1, 89), rng.uniform(0.1, 179)
    if rng.random() < 0.5:
        return f"{north:.3f}° {rng.choice('NS')}, {east:.3f}° {rng.choice('EW')}"
    latitude = f"{int(north)}°{rng.randint(1, 59)}'{rng.choice('NS')}"
    return f"{latitude} {int(east)}°{rng.randint(1, 59)}'{rng.choice('EW')}"


_MAKERS: dict[str, Callable[[random.Random], str]] = {
    "person": _person,
    "place": lambda rng: (_stem(rng, 1) + _draw(rng, "place_ends")).capitalize(),
    "substance": lambda rng: _stem(rng) + _draw(rng, "substance_ends"),
    "firm": lambda rng: f"{_name(rng)} {_draw(rng, 'firm_ends')}",
    "name": _name,
    "year": lambda rng: str(rng.randint(1301, 2099)),
    "date": _date,
    "time": _time,
    "count": _count,
    "money": _money,
    "code": _code,
    "uuid": lambda rng: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
    "password": _password,
    "spot": _spot,
    "heat": lambda rng: f"{rng.uniform(-80, 900):.1f} °{rng.choice('CCF')}",
    "span": lambda rng: f"{rng.randint(13, 120)} {_draw(rng, 'time_units')}",
    "mail": lambda rng: f"{_stem(rng)}.{_stem(rng, 1)}@{_stem(rng)}.example",
    "phone": lambda rng: f"{rng.randint(200, 999)}-555-{rng.randint(1000, 9999)}",
    "score": lambda rng: f"{rng.randint(21, 99)}–{rng.randint(11, 88)}",
}
