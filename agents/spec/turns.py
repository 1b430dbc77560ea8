"""What a workflow file may say of when a turn begins, and of a turn that fails."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from unspoken.agents.spec.field_types import Count
from unspoken.agents.spec.generate import Part
from unspoken.agents.spec.spellings import Spelling

Passing = Literal["timeout", "connection", "memory", "any"]
"""Kinds of errors that may be gone at the next try."""

_KINDS: tuple[Passing, ...] = ("timeout", "connection", "memory", "any")


class FirstSpec(Part):
    """A join that starts at its first messages."""

    first: Count = Field(description="How many messages start the turn; later ones are dropped.")


Join = Literal["all", "any"] | FirstSpec
OnError = Literal["fail", "skip", "default"]


def _kinds(value: object) -> object:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _attempts(value: object) -> object:
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return {"attempts": value} if is_count else value


class RetrySpec(Part):
    """How often a turn that failed is tried again."""

    attempts: Count = Field(3, description="Most tries of a turn, the first included.")
    on: Annotated[tuple[Passing, ...], Spelling(_kinds, {"enum": list(_KINDS)})] = Field(
        ("timeout", "connection", "memory"),
        description="Which errors are worth another try: timeout, connection, memory, or any that "
        "is no mistake of the workflow's or its input's; one or a list.",
    )
    wait: Annotated[float, Strict(), Field(ge=0)] = Field(
        0.5,
        description="Seconds before the second try; before each later one twice as long, a minute "
        "at most, and up to as much again by chance.",
    )


BARE_RETRY = Spelling(_attempts, {"type": "integer", "minimum": 1})
