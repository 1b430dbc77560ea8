"""What a workflow file may say: one frozen model per kind of thing in it.

These models check each value by itself. How values fit together (names, edges, cycles, what
templates read) is checked by `unspoken.agents.spec.graph`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema, model_validator

from unspoken.agents.spec.declared import InputSpec, ModelSpec, TemplateArguments
from unspoken.agents.spec.edge import EdgeSpec, Share, Thoughts
from unspoken.agents.spec.field_types import (
    KEYS_ARE_NAMES,
    AgentName,
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
from unspoken.agents.spec.shape import AnswerSchema
from unspoken.agents.spec.spellings import LIST, NONE_WORD, bare, by_kind
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


_NESTED: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "object"}]}

_OF_MODELS: tuple[str, ...] = ("system", "generate", "max_calls", "min_calls", "thoughts")
_OF_MODELS += ("order", "snapshots", "idle_timeout")
"""Keys of an agent that are about its model."""


class AgentSpec(Part):
    """A role on a model, or a workflow in its place."""

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

    workflow: Annotated[WorkflowSpec | None, WithJsonSchema(_NESTED), NONE_WORD] = Field(
        None,
        description="A workflow that takes the agent's turns, in place of model and prompt: its "
        "file, beside this one, or a workflow as in a file of its own.",
    )
    inputs: dict[Name, Any] = Field(
        {},
        description="With workflow: its inputs, each a value or a template that reads what a "
        "prompt reads.",
        json_schema_extra=KEYS_ARE_NAMES,
    )
    ask: Annotated[Ask | None, NONE_WORD] = Field(
        None,
        description="What a person does in each turn: approve or edit what the agent wrote, or "
        "answer its prompt in the model's place. The run pauses until the person has done it. With "
        "for_each each item asks for itself.",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_model(cls, data: Any) -> Any:
        """A workflow stands in place of a model and a prompt, and begins anew each turn."""
        if not isinstance(data, dict) or data.get("workflow") in (None, "none"):
            return data
        return {"model": "", "prompt": "", "memory": "turn", **data}

    @model_validator(mode="after")
    def _takes_what_a_workflow_takes(self) -> AgentSpec:
        if self.workflow is None:
            if self.inputs:
                found = "inputs stand at an agent without a workflow"
                wrong(found, "workflow: FILE beside them", "write them into the prompt")
            return self
        usual = {name: AgentSpec.model_fields[name].default for name in _OF_MODELS}
        for name in ("model", "prompt", "template", "tools", *usual):
            value = getattr(self, name)
            if value if name not in usual else value != usual[name]:
                wrong(f"{name} stands beside workflow", "one of them", f"remove {name}")
        return self

    @property
    def answers(self) -> AnswerSchema | None:
        """The schema of its answers, where they are data."""
        if self.workflow is not None:
            return self.workflow.result_schema
        return None if self.generate is None else self.generate.schema_

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
        schema = self.answers
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
    private: bool = Field(False, description="Leave words, but outputs, out of reports.")
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

    @property
    def results(self) -> tuple[str, ...]:
        """Names of its outputs; without any, the agents that nobody reads."""
        if self.outputs:
            return tuple(self.outputs)
        read = {edge.from_ for edge in self.edges if not edge.loop}
        return tuple(name for name in self.agents if name not in read)

    @property
    def result_schema(self) -> AnswerSchema | None:
        """As an agent: the schema of its several outputs; None where it has one, which is words."""
        if len(self.results) < 2:
            return None
        names = {name: {"type": "string"} for name in self.results}
        schema = {"type": "object", "properties": names, "required": list(names)}
        return AnswerSchema(json.dumps({**schema, "additionalProperties": False}))

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


AgentSpec.model_rebuild()


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a workflow file; it accepts every file that the loader accepts."""
    schema = WorkflowSpec.model_json_schema(by_alias=True, mode="validation")
    agent = schema["$defs"]["AgentSpec"]
    agent["if"] = {"not": {"required": ["workflow"]}}
    agent["then"] = {"required": agent.pop("required")}
    nested = agent["properties"]["workflow"]
    nested["anyOf"] = [
        {"$ref": "#"} if one == {"type": "object"} else one for one in nested["anyOf"]
    ]
    for part in (schema, *schema["$defs"].values()):
        part["patternProperties"] = {"^x-": {}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **by_kind(schema),
        "title": "unspoken workflow",
    }


def dump(spec: WorkflowSpec) -> dict[str, Any]:
    """Return ``spec`` as plain data, less what is at its default; read again, it is equal."""
    data = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    for name, agent in spec.agents.items():
        if agent.workflow is not None:
            data["agents"][name]["workflow"] = dump(agent.workflow)
            for key in ("model", "prompt", "memory"):
                del data["agents"][name][key]
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
