"""What a workflow file may say: one frozen model per kind of thing in it.

These models check each value by itself. How values fit together (names, edges, cycles, what
templates read) is checked by `unspoken.agents.spec.graph`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, Strict, model_validator

from unspoken.agents.spec.devices import Device
from unspoken.agents.spec.field_types import (
    KEYS_ARE_NAMES,
    AgentName,
    ArgumentName,
    Bytes,
    Count,
    Flag,
    Fraction,
    Name,
    NonEmpty,
    Seconds,
    Text,
    Whole,
    wrong,
)
from unspoken.agents.spec.generate import GenerateSpec, Part
from unspoken.agents.spec.repair import Repair
from unspoken.agents.spec.spellings import LIST, NONE_WORD, bare

__all__ = [
    "AgentSpec",
    "EdgeSpec",
    "GenerateSpec",
    "InputSpec",
    "ModelSpec",
    "Repair",
    "Share",
    "WorkflowSpec",
    "dump",
    "json_schema",
]

Share = Literal["output", "prompt", "context"]

READ_AGAIN = 128
"""First tokens of each of several spliced messages that are computed again."""


class ModelSpec(Part):
    """A language model that agents share; a bare string is its ref."""

    ref: NonEmpty = Field(
        description="Where the model is: a Hub id, a folder, a .gguf file or embedded:NAME."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="Number format of the weights; auto is float32 on a CPU and the checkpoint's "
        "own on an accelerator. int8 is for the weights of linear layers, on a CPU.",
    )
    device: Device = Field(
        "auto",
        description="Where the model runs: auto, cpu, cuda:0 or another torch device; "
        "{map: auto} for several.",
    )
    revision: Annotated[NonEmpty | None, NONE_WORD] = Field(
        None, description="Branch, tag or commit of a Hub model."
    )
    adapter: Annotated[NonEmpty | None, NONE_WORD] = Field(
        None,
        description="Folder or Hub id of an adapter (LoRA) on the model; models of one ref share "
        "their weights.",
    )
    template: dict[ArgumentName, bool | int | float | str] = Field(
        default_factory=dict,
        description="Arguments for the model's chat template, such as enable_thinking: false.",
    )


InputType = Literal["text", "integer", "number", "boolean", "list"]


class InputSpec(Part):
    """A value that a run is given; a bare string is its type."""

    type: InputType = Field("text", description="What kind of value the input takes.")
    default: Any = Field(
        None, description="The value where a run gives none; an input without one is required."
    )
    description: Text = Field("", description="What the input is, for people.")

    @property
    def required(self) -> bool:
        """Whether a run must give this input."""
        return self.default is None

    def accepts(self, value: object) -> bool:
        """Tell whether ``value`` is of this input's type."""
        match self.type:
            case "text":
                return isinstance(value, str)
            case "boolean":
                return isinstance(value, bool)
            case "integer":
                return isinstance(value, int) and not isinstance(value, bool)
            case "number":
                if isinstance(value, bool) or not isinstance(value, int | float):
                    return False
                return math.isfinite(value)
            case "list":
                return isinstance(value, list | tuple)

    @model_validator(mode="after")
    def _default_fits(self) -> InputSpec:
        if self.default is not None and not self.accepts(self.default):
            wrong(
                f"the default {self.default!r} is not of type {self.type}",
                f"a value of type {self.type}",
                "change the default or the type",
            )
        return self


class AgentSpec(Part):
    """A role on a model."""

    model: Text = Field(description="Name of one of the workflow's models.")
    prompt: Text = Field(
        description="Template of the turn: reads inputs, and the text of agents with an edge here."
    )
    system: Annotated[Text | None, NONE_WORD] = Field(
        None,
        description="Template of the system turn, which reads inputs only; none leaves it to the "
        "model's chat template.",
    )
    generate: Annotated[GenerateSpec | None, NONE_WORD] = Field(
        GenerateSpec(), description="How the agent writes; none only reads its prompt."
    )
    memory: Literal["run", "turn"] = Field(
        "run", description="Keep the context over the turns of a run, or start again each turn."
    )
    order: Literal["edges", "auto"] = Field(
        "edges",
        description="How messages that the prompt does not place stand before it: in the order of "
        "the edges, or with auto those first that continue the context as they are.",
    )
    join: Literal["all", "any"] = Field(
        "all", description="Start when all in-edges hold a message, or when the first arrives."
    )
    max_turns: Annotated[Count | None, NONE_WORD] = Field(
        None,
        description="Most turns in a run; 2 or more is required with a loop edge to the agent. An "
        "agent that follows a loop and has one turn left takes it after the last round.",
    )
    for_each: Annotated[NonEmpty | None, NONE_WORD] = Field(
        None,
        description="Expression for a list, such as inputs.rows; the agent runs once per item.",
    )
    on_error: Literal["fail", "skip"] = Field(
        "fail",
        description="With for_each, what an item that fails does: fail ends the run, skip goes on "
        "with the other items and puts the error into the report.",
    )
    timeout: Annotated[Seconds | None, NONE_WORD] = Field(
        None,
        description="Most seconds that a turn, or an item of for_each, may work; waiting for "
        "others is free.",
    )

    @model_validator(mode="after")
    def _skips_items(self) -> AgentSpec:
        if self.on_error == "skip" and self.for_each is None:
            wrong(
                "on_error: skip stands at an agent without for_each", "for_each", "remove on_error"
            )
        return self


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
        0.8,
        description="Least specific retention of a bridge, by its audit: the share of the text's "
        "gain that it keeps of this message alone. Below it the edge goes by text.",
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


class WorkflowSpec(Part):
    """A workflow: models, agents on them, and the edges between."""

    name: NonEmpty = Field(description="What the workflow is called.")
    description: Text = Field("", description="What the workflow does, for people.")
    models: dict[Name, Annotated[ModelSpec, bare("ref", "The model's ref.")]] = Field(
        description="The models, by name.", json_schema_extra=KEYS_ARE_NAMES
    )
    inputs: dict[Name, Annotated[InputSpec, bare("type", "The input's type.")]] = Field(
        {}, description="What a run is given, by name.", json_schema_extra=KEYS_ARE_NAMES
    )
    agents: dict[AgentName, AgentSpec] = Field(
        description="The agents, by name.", json_schema_extra=KEYS_ARE_NAMES
    )
    edges: Annotated[tuple[EdgeSpec, ...], LIST] = Field(
        (), description="The edges; a receiver reads its messages in this order."
    )
    outputs: dict[Name, Text] = Field(
        {},
        description="Templates of the results, by name; they read inputs and agents.",
        json_schema_extra=KEYS_ARE_NAMES,
    )
    bridges: Literal["stored", "fit", "trust"] = Field(
        "stored",
        description="Bridges between different models: stored ones that this machine measured; "
        "fit, one fitted on the first run where an edge has none; trust, bridges from elsewhere "
        "by their own audits.",
    )
    timeout: Annotated[Seconds | None, NONE_WORD] = Field(
        None, description="Most seconds that the whole run may take, loading and fitting included."
    )
    memory: Annotated[Bytes | None, NONE_WORD] = Field(
        None,
        description="Most bytes of states on each device, such as 2GB; what does not fit waits on "
        "disk. none is half of what is free when the run starts.",
    )

    def share_of(self, edge: EdgeSpec) -> Share:
        """Return what ``edge`` shares: as written, else output, or prompt of a mere reader."""
        if edge.share is not None:
            return edge.share
        sharer = self.agents.get(edge.from_)
        return "prompt" if sharer is not None and sharer.generate is None else "output"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a workflow file; it accepts every file that the loader accepts."""
    schema = WorkflowSpec.model_json_schema(by_alias=True, mode="validation")
    for part in (schema, *schema["$defs"].values()):
        part["patternProperties"] = {"^x-": {}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "unspoken workflow",
    }


def dump(spec: WorkflowSpec) -> dict[str, Any]:
    """Return ``spec`` as plain data, less what is at its default; read again, it is equal."""
    data = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    data["models"] = {
        name: model["ref"] if set(model) == {"ref"} else model
        for name, model in data["models"].items()
    }
    if "inputs" in data:
        data["inputs"] = {
            name: given.get("type", "text") if set(given) <= {"type"} else given
            for name, given in data["inputs"].items()
        }
    for part in (*data["agents"].values(), *data.get("edges", ())):
        part.update({key: "none" for key, value in part.items() if value is None})
    return data
