"""The words that synthetic passages and questions are made of: this folder's YAML files."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter
from ruamel.yaml import YAML

_Shape = TypeVar("_Shape")
_CLOSED = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that a passage says, and the ways to ask for it.

    Attributes:
        says: Sentences with slots in braces.
        asks: Questions by the slot that answers them.
    """

    __pydantic_config__ = _CLOSED

    says: tuple[str, ...]
    asks: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of passage.

    Attributes:
        name: What it is about.
        shared: Slots with one value per passage, and what makes their values.
        each: Slots with a value per subject of the passage.
        opening: Facts about the shared slots; one of them opens the passage.
        facts: Facts about one subject.
        asides: Sentences that no question asks about; their slots are names of values.
    """

    __pydantic_config__ = _CLOSED

    name: str
    shared: Mapping[str, str]
    each: Mapping[str, str]
    opening: tuple[Fact, ...]
    facts: tuple[Fact, ...]
    asides: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrases:
    """``phrases.yaml``: what passages and questions of every kind share."""

    __pydantic_config__ = _CLOSED

    leads: tuple[str, ...]
    links: tuple[str, ...]
    fillers: tuple[str, ...]
    blanks: tuple[str, ...]
    continuations: tuple[str, ...]
    lookups: tuple[str, ...]
    records: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """``values.yaml``: lists to draw from, patterns that join draws, and units by quantity."""

    __pydantic_config__ = _CLOSED

    lists: Mapping[str, tuple[str, ...]]
    patterns: Mapping[str, str]
    units: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trivia:
    """``trivia.yaml``: common knowledge as tables."""

    __pydantic_config__ = _CLOSED

    capitals: Mapping[str, str]
    opposites: Mapping[str, str]
    groups: Mapping[str, tuple[str, ...]]
    properties: Mapping[str, str]
    colours: tuple[str, ...]
    days: tuple[str, ...]


@cache
def kinds() -> tuple[Kind, ...]:
    """Every kind of passage."""
    return _read("kinds", tuple[Kind, ...])


@cache
def unseen_kinds() -> tuple[Kind, ...]:
    """Kinds of passages that no fit draws: only audits ask about them."""
    return _read("unseen", tuple[Kind, ...])


@cache
def phrases() -> Phrases:
    """The phrases that all kinds share."""
    return _read("phrases", Phrases)


@cache
def values() -> Values:
    """What invented values are made of."""
    return _read("values", Values)


@cache
def trivia() -> Trivia:
    """Tables of common knowledge."""
    return _read("trivia", Trivia)


def _read(name: str, shape: type[_Shape]) -> _Shape:
    """One file of this folder; pydantic's ValidationError where it has another shape."""
    text = resources.files(__package__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return TypeAdapter(shape).validate_python(YAML(typ="safe", pure=True).load(text))
