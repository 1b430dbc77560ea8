"""What a kind of synthetic passage is made of."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Fact", "Kind", "fact", "sentences"]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a passage says, and the ways to ask for it.

    Attributes:
        says: Sentences with slots in braces.
        asks: Questions by the slot that answers them.
    """

    says: tuple[str, ...]
    asks: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of passage.

    Attributes:
        name: What it is about.
        shared: Slots with one value per passage, and what makes their values.
        each: Slots with a value per subject of the passage.
        opening: Facts about the shared slots; one of them opens the passage.
        facts: Facts about one subject.
        asides: Sentences that no question asks about; their slots are names of makers.
    """

    name: str
    shared: Mapping[str, str]
    each: Mapping[str, str]
    opening: tuple[Fact, ...]
    facts: tuple[Fact, ...]
    asides: tuple[str, ...]


def fact(says: str, **asks: str) -> Fact:
    """A fact from its sentences and, by slot, its questions, each parted by ``|``."""
    return Fact(tuple(says.split("|")), {slot: tuple(q.split("|")) for slot, q in asks.items()})


def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text that are parted by ``|``."""
    return tuple(text.split("|"))
