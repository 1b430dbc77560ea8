"""How an agent writes: the keys of ``generate``, and what all parts of a workflow file share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from unspoken.agents.spec.field_types import Count, NonEmpty, Whole, wrong
from unspoken.agents.spec.shape import AnswerSchema, refusal, regex_grammar
from unspoken.agents.spec.spellings import LIST, NONE_WORD, STRINGS


class Part(BaseModel):
    """A part of a workflow file: unknown keys are refused, values do not change."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
        validate_default=True,
    )


_Share = Annotated[float, Strict(), Field(gt=0, le=1)]
_Cutoff = Annotated[float, Strict(), Field(ge=0, lt=1)]
_Positive = Annotated[float, Strict(), Field(gt=0)]
_Strings = Annotated[tuple[NonEmpty, ...], STRINGS]


class GenerateSpec(Part):
    """How an agent writes."""

    max_new_tokens: Count = Field(128, description="Most tokens written in one turn.")
    min_new_tokens: Annotated[Count | None, NONE_WORD] = Field(
        None, description="Least tokens written in one turn; stop strings may end it before."
    )
    defaults: Annotated[Literal["checkpoint"] | None, NONE_WORD] = Field(
        None,
        description="Where keys that are not given come from: checkpoint takes them from the "
        "model's generation_config.json. Without it they are off.",
    )
    temperature: Annotated[Annotated[float, Strict(), Field(ge=0)] | None, NONE_WORD] = Field(
        None, description="Randomness of sampling; 0, and none, take the likeliest token each time."
    )
    top_p: Annotated[_Share | None, NONE_WORD] = Field(
        None, description="Sample from the likeliest tokens that together reach this probability."
    )
    top_k: Annotated[Count | None, NONE_WORD] = Field(
        None, description="Sample from this many of the likeliest tokens."
    )
    top_h: Annotated[_Share | None, NONE_WORD] = Field(
        None, description="Sample from the likeliest tokens that hold this share of the entropy."
    )
    min_p: Annotated[_Share | None, NONE_WORD] = Field(
        None,
        description="Sample from tokens of at least this share of the likeliest one's probability.",
    )
    typical_p: Annotated[_Share | None, NONE_WORD] = Field(
        None,
        description="Sample from the most typical tokens that together reach this probability.",
    )
    epsilon_cutoff: Annotated[_Cutoff | None, NONE_WORD] = Field(
        None, description="Sample from tokens of at least this probability."
    )
    eta_cutoff: Annotated[_Cutoff | None, NONE_WORD] = Field(
        None, description="The same, with a bound that falls where the entropy is high."
    )
    repetition_penalty: Annotated[_Positive | None, NONE_WORD] = Field(
        None, description="Makes tokens of the context less likely, by chance or not; 1 is off."
    )
    no_repeat_ngram_size: Annotated[Whole | None, NONE_WORD] = Field(
        None, description="No run of this many tokens is written twice; 0 is off."
    )
    bad_words: _Strings = Field(
        (), description="Words that are never written, at a word's start or inside; one or a list."
    )
    seed: Annotated[Whole | None, NONE_WORD] = Field(
        None,
        description="Seed of the sampler; runs with the same seed write the same. Turns and items "
        "of for_each each draw their own.",
    )
    stop: _Strings = Field(
        (), description="Strings that end the turn and are cut off; one or a list."
    )
    schema_: Annotated[AnswerSchema | None, NONE_WORD] = Field(
        None,
        alias="schema",
        description="JSON schema of the answer, which nothing else can be; templates read it under "
        "the agent's data.",
    )
    choices: Annotated[tuple[NonEmpty, ...], LIST] = Field(
        (), description="Texts, one of which is the answer: the likeliest, or by chance."
    )
    regex: Annotated[NonEmpty | None, NONE_WORD] = Field(
        None, description="Regular expression that the whole answer matches, without look-around."
    )

    @model_validator(mode="after")
    def _one_shape(self) -> GenerateSpec:
        given = {"schema": self.schema_, "choices": self.choices, "regex": self.regex}
        shapes = [name for name, value in given.items() if value]
        if len(shapes) > 1:
            wrong(f"{' and '.join(shapes)} are given", "one of them", "keep one")
        for name in ("stop", "min_new_tokens"):
            if shapes and getattr(self, name):
                wrong(
                    f"{name} stands beside {shapes[0]}, which says where the answer ends",
                    f"{shapes[0]} or {name}",
                    f"remove {name}",
                )
        if len(set(self.choices)) < len(self.choices):
            wrong("a choice is given twice", "choices that differ", "remove one of the two")
        refused = refusal(regex_grammar(self.regex)) if self.regex else ""
        if refused:
            wrong(
                f"the regex cannot be kept to: {refused}",
                "a regular expression without look-around and back references",
            )
        return self

    @model_validator(mode="after")
    def _least_below_most(self) -> GenerateSpec:
        if self.min_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            wrong(
                f"min_new_tokens {self.min_new_tokens} is more than max_new_tokens",
                f"at most {self.max_new_tokens}",
                "raise max_new_tokens",
            )
        return self
