"""What a workflow file may say: one frozen model per kind of thing in it.

These models check each value by itself. How values fit together (names, edges, cycles, what
templates read) is checked by `unspoken.agents.spec.graph`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from unspoken.agents.spec.devices import Device
from unspoken.agents.spec.edge import EdgeSpec, Share, Thoughts
from unspoken.agents.spec.field_types import (
    KEYS_ARE_NAMES,
    AgentName,
    ArgumentName,
    Ask,
    Bytes,
    Count,
    Name,
    NonEmpty,
    Seconds,
    Text,
    Whole,
    wrong,
)
from unspoken.agents.spec.generate import GenerateSpec, Part
from unspoken.agents.spec.repair import Repair
from unspoken.agents.spec.servers import McpServerSpec
from unspoken.agents.spec.spellings import LIST, NONE_WORD, bare
from unspoken.agents.spec.turns import BARE_RETRY, Join, OnError, RetrySpec
from unspoken.agents.tools.ref import ToolRef
from unspoken.agents.tools.servers import McpServer

__all__ = [
    "AgentSpec",
    "EdgeSpec",
    "GenerateSpec",
    "InputSpec",
    "McpServerSpec",
    "ModelSpec",
    "Repair",
    "RetrySpec",
    "Share",
    "WorkflowSpec",
    "dump",
    "json_schema",
]


TemplateArguments = dict[ArgumentName, bool | int | float | str]


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
    template: TemplateArguments = Field(
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
    tools: Annotated[tuple[ToolRef, ...], LIST] = Field(
        (),
        description="What the agent may call while it answers: functions as module:function, where "
        "modules beside the file come first; mcp:SERVER; mcp:SERVER/TOOL. They run only where "
        "--allow-tools says so.",
    )
    max_calls: Count = Field(
        4, description="Most calls of tools in one turn; after them the agent answers."
    )
    min_calls: Whole = Field(
        0, description="Least calls of tools in one turn; before them the agent cannot answer."
    )
    template: TemplateArguments = Field(
        default_factory=dict,
        description="Arguments for the chat template in this agent's turns, beside the model's.",
    )
    thoughts: Annotated[Thoughts | None, NONE_WORD] = Field(
        None,
        description="What becomes of what the agent thinks before it answers: drop leaves it out "
        "of all that the agent hands on, keep leaves it in. Without a value, share: output and the "
        "agent's text leave it out, and its later turns do what its chat template does.",
    )
    memory: Literal["run", "turn", "session"] = Field(
        "run",
        description="Keep the context over the turns of a run, start again each turn, or go on "
        "with the conversation of a session, from run to run.",
    )
    order: Literal["edges", "auto"] = Field(
        "edges",
        description="How messages that the prompt does not place stand before it: in the order of "
        "the edges, or with auto those first that continue the context as they are.",
    )
    join: Join = Field(
        "all",
        description="Start when all in-edges hold a message, with any when one arrives, with "
        "{first: 2} when two have arrived.",
    )
    max_turns: Annotated[Count | None, NONE_WORD] = Field(
        None,
        description="Most turns in a run; 2 or more is required with a loop edge to the agent. An "
        "agent that follows a loop and has one turn left takes it after the last round.",
    )
    snapshots: Annotated[Count | None, NONE_WORD] = Field(
        None, description="With recurrent layers: tokens from one snapshot to the next in a turn."
    )
    for_each: Annotated[NonEmpty | None, NONE_WORD] = Field(
        None,
        description="Expression for a list, such as inputs.rows; the agent runs once per item.",
    )
    on_error: OnError = Field(
        "fail",
        description="What a turn that fails does: fail ends the run, skip sends skips to its "
        "readers, default goes on with the agent's default. With for_each it is about each item; "
        "skip leaves it out. The error is in the report.",
    )
    default: Text | None = Field(
        None, description="What a turn that fails is taken to have written, by on_error: default."
    )
    retry: Annotated[RetrySpec | None, NONE_WORD, BARE_RETRY] = Field(
        None, description="Tries of a turn that fails, or of an item of for_each; none for one."
    )
    timeout: Annotated[Seconds | None, NONE_WORD] = Field(
        None,
        description="Most seconds that a turn, or an item of for_each, may work; waiting for "
        "others is free.",
    )
    idle_timeout: Annotated[Seconds | None, NONE_WORD] = Field(
        None, description="Most seconds from one token of a turn to the next, and to the first."
    )

    ask: Annotated[Ask | None, NONE_WORD] = Field(
        None,
        description="What a person does in each turn: approve or edit what the agent wrote, or "
        "answer its prompt in the model's place. The run pauses until the person has done it. With "
        "for_each each item asks for itself.",
    )

    @model_validator(mode="after")
    def _asks_for_words(self) -> AgentSpec:
        if self.ask is not None and self.generate is None:
            wrong("ask stands at an agent with generate: none", "an agent that writes words", "")
        return self

    @model_validator(mode="after")
    def _answers_with_tools(self) -> AgentSpec:
        if self.tools and (self.generate is None or self.generate.choices):
            stands = "generate: none" if self.generate is None else "choices"
            wrong(f"tools stand beside {stands}", "an agent that writes words", "remove the tools")
        if self.tools and self.ask is not None:
            wrong("tools stand beside ask", "one of them", "let another agent call the tools")
        most = self.max_calls if self.tools else 0
        if self.min_calls > most:
            found = f"min_calls is {self.min_calls}, of at most {most} calls"
            wrong(found, f"at most {most}", "give it tools, or raise max_calls")
        return self

    @model_validator(mode="after")
    def _has_its_default(self) -> AgentSpec:
        if self.on_error == "default" and self.default is None:
            wrong("on_error: default stands at an agent without one", "default: a text", "add it")
        if self.on_error != "default" and self.default is not None:
            found = f"a default stands at an agent with on_error: {self.on_error}"
            wrong(found, "on_error: default", "add it, or remove the default")
        schema = None if self.generate is None else self.generate.schema_
        if self.default is not None and schema is not None and not schema.takes(self.default):
            wrong(
                f"the default {self.default[:40]!r} is no answer of the agent's schema",
                "whole JSON of it, the properties in its order",
                "write such a default, which templates and conditions can read",
            )
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
    mcp_servers: dict[Name, McpServerSpec] = Field(
        {},
        description="Servers of tools that speak MCP, by name; an agent names one among its tools.",
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

    @property
    def servers(self) -> tuple[McpServer, ...]:
        """The servers that agents have tools of."""
        used = {ref.server for agent in self.agents.values() for ref in agent.tools}
        return tuple(one.named(name) for name, one in self.mcp_servers.items() if name in used)

    def share_of(self, edge: EdgeSpec) -> Share:
        """Return what ``edge`` shares: as written, else output, or prompt of a mere reader."""
        if edge.share is not None:
            return edge.share
        sharer = self.agents.get(edge.from_)
        return "prompt" if sharer is not None and sharer.generate is None else "output"

    def drops_thoughts(self, edge: EdgeSpec) -> bool:
        """Whether ``edge`` leaves out its sharer's thoughts: as written, else with its output."""
        sharer = self.agents.get(edge.from_)
        asked = edge.thoughts or (sharer.thoughts if sharer is not None else None)
        return asked == "drop" or (asked is None and self.share_of(edge) == "output")


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
