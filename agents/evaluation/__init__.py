"""Evaluations: a workflow over rows, its messages carried in several ways, and what that is worth.

Rows are run under arms, which differ in how messages go. Scorers say how good an answer is, and
statistics say what the difference between two arms shows.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unspoken.agents.evaluation.evaluation import Evaluation, aevaluate, evaluate
    from unspoken.agents.evaluation.harness import workflow_lm
    from unspoken.agents.evaluation.outcome import Outcome

__all__ = ["Evaluation", "Outcome", "aevaluate", "evaluate", "workflow_lm"]

_HOMES = {
    "Evaluation": "evaluation",
    "Outcome": "outcome",
    "aevaluate": "evaluation",
    "evaluate": "evaluation",
    "workflow_lm": "harness",
}


def __getattr__(name: str) -> object:
    """Import a public name's module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
