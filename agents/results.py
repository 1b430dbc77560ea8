"""What a run gives."""

from dataclasses import dataclass
from typing import Any

from unspoken.agents.report import RunReport

__all__ = ["AgentResult", "RunResult"]


@dataclass(frozen=True, slots=True)
class AgentResult:
    """What an agent wrote.

    Attributes:
        text: Words of its last turn; its prompt where it only reads.
        turns: Words of every turn.
    """

    text: str
    turns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run gave.

    Attributes:
        outputs: The workflow's outputs, by name.
        agents: What each agent wrote; an agent that was skipped is not in it.
        report: What it cost.
    """

    outputs: dict[str, str]
    agents: dict[str, AgentResult]
    report: RunReport

    def __getitem__(self, agent: str) -> AgentResult:
        return self.agents[agent]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as ``unspoken run --json`` prints it."""
        report = self.report.to_dict()
        return {"run_id": report.pop("run_id"), "outputs": self.outputs, **report}
