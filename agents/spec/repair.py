"""What an edge recomputes of a spliced message: the keys of ``repair``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict, model_validator

from unspoken.agents.spec.field_types import Fraction, Whole, wrong
from unspoken.agents.spec.generate import Part
from unspoken.agents.spec.spellings import NONE_WORD

SINK = 4
"""First tokens that are recomputed where nothing is said."""

Milliseconds = Annotated[float, Strict(), Field(ge=0)]


class Repair(Part):
    """What is recomputed of a spliced message, in one pass over the chosen tokens."""

    sink: Whole = Field(SINK, description="How many of the message's first tokens are recomputed.")
    deviation: Fraction = Field(
        0.0,
        description="Share of the message's tokens that are recomputed besides: those whose values "
        "on an early layer differ most from the receiver's.",
    )
    budget: Annotated[Milliseconds | None, NONE_WORD] = Field(
        None,
        description="Milliseconds to spend in place of the other two keys: on as many first tokens "
        "as the receiver computes in that time. Enough for the whole message is exact; 0 "
        "recomputes nothing.",
    )

    @model_validator(mode="after")
    def _budget_stands_alone(self) -> Repair:
        if self.budget is not None and (self.sink != SINK or self.deviation):
            wrong(
                f"repair has a budget beside {'deviation' if self.deviation else 'sink'}",
                "a budget, which chooses the tokens itself, or sink and deviation",
                f"write repair: {{budget: {self.budget:g}}} alone, or leave budget out",
            )
        return self
