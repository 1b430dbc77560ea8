"""What a workflow file may say of an edge."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from unspoken.agents.spec.field_types import Ask, Flag, Fraction, NonEmpty, Text, Whole, wrong
from unspoken.agents.spec.generate import Part
from unspoken.agents.spec.repair import Repair
from unspoken.agents.spec.spellings import LIST, NONE_WORD

Share = Literal["output", "prompt", "context"]
Thoughts = Literal["keep", "drop"]

MIN_RETENTION, MAX_LOSS = 0.9, 0.03
"""What an edge asks of a bridge's audit, unless it says otherwise."""

MAX_INEXACT = 5
"""As many inexact hand-overs in a row as were measured; see docs/benchmarks.md, Hops."""

READ_AGAIN = 128
"""First tokens of each of several spliced messages that are computed again."""

Layers = Annotated[tuple[Whole, Whole], LIST]
Recompute = Literal["profile"] | Annotated[tuple[Layers, ...], LIST]


class EdgeSpec(Part):
    """A typed connection from one agent to another."""

    from_: Text = Field(
        validation_alias="from", serialization_alias="from", description="The agent that shares."
    )
    to: Text = Field(description="The agent that receives.")
    channel: Literal["auto", "text", "same_model_cache", "projected_cache"] = Field(
        "auto", description="How the message is carried; auto takes the fastest that is safe."
    )
    share: Annotated[Share | None, NONE_WORD] = Field(
        None,
        description="What is shared: what the agent wrote, its prompt turn, or all its turns. "
        "Without a value: output, or prompt where the agent writes nothing.",
    )
    thoughts: Annotated[Thoughts | None, NONE_WORD] = Field(
        None,
        description="Whether the sharer's thoughts go with it: keep or drop. Without a value, as "
        "the sharer says, else output goes without and context with them.",
    )
    as_: Literal["user", "assistant"] = Field(
        "user",
        validation_alias="as",
        serialization_alias="as",
        description="Role of the message in the receiver's context.",
    )
    repair: Annotated[Repair | None, NONE_WORD] = Field(
        Repair(), description="What is recomputed of a message that stands after other tokens."
    )
    read_again: Whole = Field(
        READ_AGAIN,
        description="With channel: auto, where several messages would be spliced into one context: "
        "how many first tokens of each are computed again. What an agent can write in so many "
        "goes by text. 0 leaves each to its repair.",
    )
    max_inexact: Whole = Field(
        MAX_INEXACT,
        description="Most inexact hand-overs in a row, this one included: a splice, a bridge, "
        "layers recomputed or a codec. The next goes by text, which is exact. 0 takes none, and "
        "goes on from no inexact state.",
    )
    recompute: Annotated[Recompute | None, NONE_WORD] = Field(
        "profile",
        description="Between fine-tunes of one base, the layers that the receiver recomputes: by "
        "the pair's stored profile, or ranges as [first, last + 1]. An empty list takes the cache "
        "as it is; none refuses it.",
    )
    max_kl: Annotated[float, Strict(), Field(ge=0)] = Field(
        0.01,
        description="Most that a profile may say of the receiver's distance from its own prefill: "
        "KL in nats per token.",
    )
    min_retention: Fraction = Field(
        MIN_RETENTION,
        description="Least share of a message that a bridge keeps, by its audit's lower bound. "
        "Its sharer must add something too. Below it the edge goes by text. 0 asks for neither.",
    )
    max_loss: Fraction = Field(
        MAX_LOSS,
        description="Most of the task's score (0 to 1) that a bridge may lose against text, by the "
        "lower bound of its audit. Above it the edge goes by text. 1 asks for nothing.",
    )
    fuse: Flag = Field(
        False, description="The receiver reads the message too, and a bridge enriches its cache."
    )
    codec: Literal["raw", "int8", "int4"] = Field(
        "raw",
        description="How a cache is held until it is read: raw as it is, int8 and int4 in fewer "
        "bytes and approximate.",
    )
    fallback: Literal["text", "error"] = Field(
        "text", description="What to do where the channel cannot carry a message."
    )
    when: Annotated[NonEmpty | None, NONE_WORD] = Field(
        None, description="Expression; where it is false the edge sends a skip instead."
    )
    ask: Annotated[Ask | None, NONE_WORD] = Field(
        None,
        description="What a person does with the message before it is read: approve lets it "
        "through, or the edge sends a skip; edit and answer put the person's words in its place.",
    )
    loop: Flag = Field(
        False, description="The edge closes a cycle: its message starts the receiver again."
    )

    @model_validator(mode="after")
    def _groups_ascend(self) -> EdgeSpec:
        covered = 0
        for first, last in self.recompute if isinstance(self.recompute, tuple) else ():
            if not covered <= first < last:
                found = f"the range of layers [{first}, {last}] stands in recompute"
                wrong(found, "[first, last + 1], ascending and without overlap")
            covered = last
        return self

    @model_validator(mode="after")
    def _fuses_by_a_bridge(self) -> EdgeSpec:
        if self.fuse and self.channel != "projected_cache":
            found = f"fuse stands on an edge with channel {self.channel}"
            wrong(found, "channel: projected_cache", "name the channel, or leave fuse out")
        return self

    @model_validator(mode="after")
    def _budget_is_for_splices(self) -> EdgeSpec:
        if self.channel == "projected_cache" and self.repair and self.repair.budget is not None:
            found = "a budget stands in the repair of an edge with channel projected_cache"
            wrong(found, "sink, where a bridge makes the cache", "write repair: {sink: 4}")
        return self
