"""What agents in Python code say of their workflow by themselves: its inputs, and its models' names."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from unspoken.agents.agent import Agent
from unspoken.agents.model import LocalModel
from unspoken.agents.templates import references

__all__ = ["inferred_inputs", "model_data", "model_name"]


def inferred_inputs(agents: Sequence[Agent]) -> dict[str, str]:
    """Every ``inputs.X`` that a template reads; a list where an agent runs once per item of it."""
    found: dict[str, str] = {}
    for agent in agents:
        templates = [
            (agent.prompt, False),
            (agent.system or "", False),
            (agent.for_each or "none", True),
        ]
        for source, expression in templates:
            for reference in references(source, expression=expression):
                if reference.root == "inputs" and reference.attribute is not None:
                    found[reference.attribute] = (
                        "list" if expression else found.get(reference.attribute, "text")
                    )
    return found


def model_name(
    model: LocalModel | str,
    named: Mapping[str, LocalModel | str],
    refs: dict[str, str],
    loaded: dict[str, LocalModel],
) -> str:
    """The name of a model in the workflow, entered with its reference."""
    known = next((key for key, one in named.items() if one is model or one == model), None)
    known = known or next((key for key, one in loaded.items() if one is model), None)
    ref = model if isinstance(model, str) else model.ref
    name = (
        known
        or re.sub(r"\W+", "_", ref.rsplit("/", 1)[-1].removeprefix("embedded:")).strip("_")
        or "model"
    )
    while known is None and name in refs and (refs[name] != ref or not isinstance(model, str)):
        name += "_"
    refs[name] = ref
    if isinstance(model, LocalModel):
        loaded[name] = model
    return name


def model_data(ref: str, model: LocalModel | None) -> dict[str, Any]:
    """A model as a workflow file has it; an object keeps what it was asked for when it was loaded."""
    data: dict[str, Any] = {"ref": ref or "in memory"}
    return data if model is None else {**data, **model.asked, "adapter": model.adapter}
