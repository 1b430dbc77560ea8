"""What a workflow declares for its agents: models, and inputs."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from unspoken.agents.spec.devices import Device
from unspoken.agents.spec.field_types import ArgumentName, NonEmpty, Text, wrong
from unspoken.agents.spec.generate import Part
from unspoken.agents.spec.spellings import NONE_WORD

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
