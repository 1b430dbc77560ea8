"""What a run tells as it goes: events, lines of the log, and a record of every turn and edge."""

from collections.abc import Callable
from dataclasses import asdict, fields, replace

from structlog.typing import FilteringBoundLogger

from unspoken.agents.engines.base import Carried, Prefilling, Sampled, TurnEvent, Usage
from unspoken.agents.planning.plan import Plan
from unspoken.agents.runtime.agent_run import AgentRun
from unspoken.agents.runtime.events import (
    Event,
    FallbackTaken,
    ItemFailed,
    LoopEnded,
    MessageCarried,
    PrefillProgress,
    TokenWritten,
    TurnFinished,
)
from unspoken.agents.runtime.reply import TurnReply
from unspoken.agents.runtime.report import EdgeReport, EndedLoop, FailedItem, TurnReport
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.base import CarryReport, Fallback


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
        loops_ended: Where a limit of turns ended a loop.
        failed_items: Items of ``for_each`` that were left out.
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
        self.loops_ended: list[EndedLoop] = []
        self.failed_items: list[FailedItem] = []

    def note_planned_fallbacks(self) -> None:
        """Tell of the edges that the plan lets go by text."""
        for edge in self.plan.edges:
            if edge.fallback is not None:
                self._fall_back(edge.sharer, edge.receiver, edge.reason, edge.fallback)

    def note_ended_loop(self, number: int, turns: int) -> None:
        """Tell of a message that was dropped after so many turns of its receiver."""
        edge = self.spec.edges[number]
        ended = EndedLoop(sharer=edge.from_, receiver=edge.to, when=edge.when, turns=turns)
        self.loops_ended.append(ended)
        self.log.info("loop ended", **ended.to_dict())
        self.emit(LoopEnded(edge.from_, edge.to, edge.when, turns))

    def note_failed_item(self, agent: str, turn: int, item: int, error: str) -> None:
        """Tell of an item that is left out."""
        self.failed_items.append(FailedItem(agent=agent, turn=turn, item=item, error=error))
        self.log.warning("item failed", agent=agent, turn=turn, item=item, error=error)
        self.emit(ItemFailed(agent, turn, item, error))

    def tell(self, agent: str, turn: int, event: TurnEvent, reply: TurnReply | None) -> None:
        """Tell of an event of an agent's turn."""
        match event:
            case Carried():
                self._record_carry(turn, event)
            case Prefilling(done, total):
                self.emit(PrefillProgress(agent, turn, done, total))
            case Sampled():
                self.emit(TokenWritten(agent, turn, reply.next_words() if reply else ""))

    def record(self, agent: AgentRun, turn: int, text: str, finish: str, usage: Usage) -> None:
        """Tell of a finished turn."""
        report = TurnReport(turn=turn, finish=finish, **asdict(usage))
        agent.turns.append(report)
        self.log.info("turn finished", agent=agent.name, **asdict(report))
        self.emit(TurnFinished(agent.name, turn, text, report))

    def _record_carry(self, turn: int, carried: Carried) -> None:
        edge, planned = self.spec.edges[carried.edge], self.plan.edges[carried.edge]
        told = {field.name: getattr(carried.report, field.name) for field in fields(CarryReport)}
        report = EdgeReport(
            sharer=edge.from_,
            receiver=edge.to,
            turn=turn,
            planned=planned.channel,
            seconds=carried.seconds,
            **{**told, "fallback": carried.report.fallback or planned.fallback},
        )
        self.edges.append(report)
        self.log.info("message carried", **report.to_dict())
        self.emit(MessageCarried(report))
        if carried.report.fallback is not None:
            self._fall_back(edge.from_, edge.to, report.reason, carried.report.fallback)

    def _fall_back(self, sharer: str, receiver: str, reason: str, fallback: Fallback) -> None:
        self.fallbacks.append((f"{sharer} -> {receiver}", reason))
        self.log.warning("fallback to text", edge=f"{sharer} -> {receiver}", reason=reason)
        self.emit(FallbackTaken(sharer, receiver, reason, fallback))


def with_composing(usage: Usage, seconds: float) -> Usage:
    """Counts and times with the seconds that composing the context took."""
    ttft = None if usage.ttft_s is None else usage.ttft_s + seconds
    return replace(usage, ttft_s=ttft, seconds=usage.seconds + seconds)
