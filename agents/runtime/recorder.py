"""What a run tells as it goes: events, lines of the log, and a record of every turn and every
message carried.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict

from structlog.typing import FilteringBoundLogger

from unspoken.agents.engines.turn import Carried, Prefilling, Step, TurnOutcome, Written
from unspoken.agents.planning.plan import Plan
from unspoken.agents.runtime.agent_run import AgentRun
from unspoken.agents.runtime.events import (
    Event,
    FallbackTaken,
    MessageCarried,
    PrefillProgress,
    TokenWritten,
    TurnFinished,
)
from unspoken.agents.runtime.report import EdgeReport, TurnReport
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.base import CarryReport

__all__ = ["Recorder"]


class Recorder:
    """The record of one run.

    Args:
        spec: The workflow.
        plan: Its plan.
        emit: Called with every event.
        log: The run's log.

    Attributes:
        edges: Every message carried, in order.
        fallbacks: Reuse that was asked for and did not happen, as (edge, reason).
    """

    def __init__(
        self,
        spec: WorkflowSpec,
        plan: Plan,
        emit: Callable[[Event], None],
        log: FilteringBoundLogger,
    ) -> None:
        self.spec, self.plan, self.emit, self.log = spec, plan, emit, log
        self.edges: list[EdgeReport] = []
        self.fallbacks: list[tuple[str, str]] = []

    def note_planned_fallbacks(self) -> None:
        """Tell of the edges that the plan lets go by text."""
        for edge in self.plan.edges:
            if edge.fell_back:
                self.fall_back(edge.sharer, edge.receiver, edge.reason)

    def fall_back(self, sharer: str, receiver: str, reason: str) -> None:
        """Tell of an edge that goes by text though a cache was asked for."""
        self.fallbacks.append((f"{sharer} -> {receiver}", reason))
        self.log.warning("fallback to text", edge=f"{sharer} -> {receiver}", reason=reason)
        self.emit(FallbackTaken(sharer, receiver, reason))

    def pass_on(self, name: str, turn: int, step: Step) -> None:
        """Tell of a step of an agent's turn."""
        match step:
            case Carried(carries):
                self._record_carries(turn, carries)
            case Prefilling(done, total):
                self.emit(PrefillProgress(name, turn, done, total))
            case Written(text):
                self.emit(TokenWritten(name, turn, text))

    def _record_carries(self, turn: int, carries: Sequence[tuple[int, CarryReport, float]]) -> None:
        for number, carried, seconds in carries:
            edge = self.spec.edges[number]
            planned = self.plan.channels[number].name
            record = EdgeReport(
                edge.from_, edge.to, turn, planned, seconds=seconds, **asdict(carried)
            )
            self.edges.append(record)
            self.log.info("message carried", **record.to_dict())
            self.emit(MessageCarried(record))
            if planned != carried.channel:
                self.fall_back(edge.from_, edge.to, carried.reason)

    def record(self, agent: AgentRun, turn: int, outcome: TurnOutcome, composing: float) -> None:
        """Tell of a finished turn; the seconds that composing its context took count with it."""
        usage = asdict(outcome.usage)
        if usage["ttft_s"] is not None:
            usage["ttft_s"] += composing
        usage["seconds"] += composing
        report = TurnReport(turn=turn, finish=outcome.finish, **usage)
        agent.turns.append(report)
        self.log.info("turn finished", agent=agent.name, **asdict(report))
        self.emit(TurnFinished(agent.name, turn, outcome.text, report))
