"""Who thinks, when, and on what: models, agents, workflows and the scheduler."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unspoken.agents.agent import Agent
    from unspoken.agents.models.model import LocalModel
    from unspoken.agents.planning.plan import EdgePlan, Plan
    from unspoken.agents.runtime.events import Event
    from unspoken.agents.runtime.report import EdgeReport, RunReport, TurnReport
    from unspoken.agents.session import Session
    from unspoken.agents.spec.spec import GenerateSpec, WorkflowSpec
    from unspoken.agents.workflow import AgentResult, RunResult, Workflow

__all__ = [
    "Agent",
    "AgentResult",
    "EdgePlan",
    "EdgeReport",
    "Event",
    "GenerateSpec",
    "LocalModel",
    "Plan",
    "RunReport",
    "RunResult",
    "Session",
    "TurnReport",
    "Workflow",
    "WorkflowSpec",
]

_HOMES = {
    "agent": ("Agent",),
    "models.model": ("LocalModel",),
    "planning.plan": ("EdgePlan", "Plan"),
    "runtime.events": ("Event",),
    "runtime.report": ("AgentResult", "EdgeReport", "RunReport", "RunResult", "TurnReport"),
    "session": ("Session",),
    "spec.spec": ("GenerateSpec", "WorkflowSpec"),
    "workflow": ("Workflow",),
}


def __getattr__(name: str) -> object:
    """Import a public name's module on first use (PEP 562), so that light commands stay light."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
