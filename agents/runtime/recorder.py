"""What a run tells as it goes: events, lines of the log, and a record of every turn and edge."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from operator import attrgetter

import structlog
from structlog.typing import FilteringBoundLogger

from unspoken.agents.engines.base import Carried, Prefilling, Sampled, TurnEvent, Usage
from unspoken.agents.planning.plan import Plan
from unspoken.agents.prompts.context import Context
from unspoken.agents.runs.records import PromptTurn, ToolReport
from unspoken.agents.runtime.agent_run import AgentRun
from unspoken.agents.runtime.events import (
    AgentSkipped,
    Event,
    FallbackTaken,
    ItemFailed,
    LoopEnded,
    MessageCarried,
    MessageDropped,
    PrefillProgress,
    TokenWritten,
    ToolCalled,
    ToolReturned,
    TurnFailed,
    TurnFinished,
    TurnRetried,
    TurnStarted,
)
from unspoken.agents.runtime.reply import TurnReply
from unspoken.agents.runtime.report import (
    EdgeReport,
    EmptyTurn,
    EndedLoop,
    FailedItem,
    FailedTurn,
    LateMessage,
    TurnReport,
)
from unspoken.agents.runtime.telemetry import Telemetry
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.agents.tools.toolbox import Call
from unspoken.channels.base import CarryReport

# Over the standard library's logger, so that a program that configures no logging sees warnings
# only.
_LOGGER = logging.getLogger("unspoken.scheduler")
_LINES: FilteringBoundLogger = structlog.wrap_logger(_LOGGER)


class RunLog:
    """Lines that all name their run; one that nobody sees costs next to nothing.

    Args:
        bound: What every line says.
    """

    def __init__(self, **bound: object) -> None:
        self._lines = _LINES.bind(**bound)

    @property
    def tells(self) -> bool:
        """Whether lines of information are seen."""
        return _LOGGER.isEnabledFor(logging.INFO)

    def info(self, event: str, **values: object) -> None:
        """A line of information."""
        if self.tells:
            self._lines.info(event, **values)

    def warning(self, event: str, **values: object) -> None:
        """A line that a person should see."""
        self._lines.warning(event, **values)


_USAGE = tuple(field.name for field in fields(Usage))
_counts = attrgetter(*_USAGE)
_CARRY = tuple(field.name for field in fields(CarryReport))


@dataclass(frozen=True, slots=True)
class Place:
    """Whose turn something belongs to.

    Attributes:
        agent: The agent.
        turn: Its turn, from 1.
        item: Number of the item of ``for_each``, from 0; None without.
    """

    agent: str
    turn: int
    item: int | None = None


class Recorder:
    """The record of one run.

    Args:
        spec: The workflow.
        plan: Its plan.
        emit: Called with every event.
        log: The run's log.
        telemetry: The run's spans.

    Attributes:
        edges: Every message carried, in order.
        fallbacks: Reuse that was asked for and did not happen, as (edge, reason).
        loops_ended: Where a limit of turns ended a loop.
        failed_items: Items of ``for_each`` that failed and were left out, or have the default.
        failed_turns: Turns that failed and ended no run.
        empty_turns: Turns of ``for_each`` that had nothing to hand on.
        late_messages: Messages that came after their receiver had begun without them.
    """

    def __init__(
        self,
        spec: WorkflowSpec,
        plan: Plan,
        emit: Callable[[Event], None],
        log: RunLog,
        telemetry: Telemetry,
    ) -> None:
        self.spec, self.plan, self.emit = spec, plan, emit
        self.log, self.telemetry = log, telemetry
        self.edges: list[EdgeReport] = []
        self.fallbacks: list[tuple[str, str]] = []
        self.loops_ended: list[EndedLoop] = []
        self.failed_items: list[FailedItem] = []
        self.failed_turns: list[FailedTurn] = []
        self.empty_turns: list[EmptyTurn] = []
        self.late_messages: list[LateMessage] = []

    def note_planned_fallbacks(self) -> None:
        """Tell of the edges that the plan lets go by text."""
        for edge in self.plan.edges:
            if edge.fallback is not None:
                self._fall_back(
                    FallbackTaken(edge.sharer, edge.receiver, edge.reason, edge.fallback)
                )

    def note_ended_loop(self, number: int, turns: int) -> None:
        """Tell of a message that was dropped after so many turns of its receiver."""
        edge = self.spec.edges[number]
        ended = EndedLoop(sharer=edge.from_, receiver=edge.to, when=edge.when, turns=turns)
        self.loops_ended.append(ended)
        self.log.info("loop ended", **ended.to_dict())
        self.emit(LoopEnded(edge.from_, edge.to, edge.when, turns))

    def note_late_message(self, number: int) -> None:
        """Tell of a message that its receiver, which had begun without it, never reads."""
        edge = self.spec.edges[number]
        late = LateMessage(sharer=edge.from_, receiver=edge.to)
        self.late_messages.append(late)
        self.log.info("message dropped", **late.to_dict())
        self.emit(MessageDropped(edge.from_, edge.to))

    def begin(self, agent: AgentRun, turn: int) -> None:
        """Tell of a turn that begins; with ``for_each`` each item tells of itself."""
        self.log.info("turn started", agent=agent.name, turn=turn)
        if agent.spec.for_each is None:
            self.emit(TurnStarted(agent.name, turn))

    def begin_item(self, place: Place, count: int) -> None:
        """Tell of an item that begins, and of how many there are."""
        self.emit(TurnStarted(place.agent, place.turn, place.item, count))

    def note_retry(self, place: Place, attempt: int, error: str) -> None:
        """Tell of a try that failed and that another follows."""
        told = {"turn": place.turn, "item": place.item, "attempt": attempt, "error": error}
        self.log.warning("turn is tried again", agent=place.agent, **told)
        self.emit(TurnRetried(place.agent, place.turn, attempt, error, place.item))

    def note_failed_turn(
        self, place: Place, error: str, attempts: int, instead: str | None
    ) -> None:
        """Tell of a turn, or an item of one, that failed; `instead` stands in for its words."""
        default, agent, turn, item = instead is not None, place.agent, place.turn, place.item
        told = {"agent": agent, "turn": turn, "item": item, "error": error}
        self.log.warning("turn failed", **told, attempts=attempts, default=default)
        if item is not None:
            self.failed_items.append(
                FailedItem(agent=agent, turn=turn, item=item, error=error, default=default)
            )
            self.emit(ItemFailed(agent, turn, item, error, default))
            return
        self.failed_turns.append(
            FailedTurn(agent=agent, turn=turn, error=error, attempts=attempts, default=default)
        )
        self.emit(TurnFailed(agent, turn, error, attempts, default))

    def tell(self, place: Place, event: TurnEvent, reply: TurnReply | None) -> None:
        """Tell of an event of an agent's turn."""
        match event:
            case Carried():
                self._record_carry(place, event)
            case Prefilling(done, total):
                self.emit(PrefillProgress(place.agent, place.turn, done, total, place.item))
            case Sampled():
                self.tell_words(place, reply.next_words() if reply else "")

    def tell_at_once(
        self, place: Place, reply: TurnReply | None
    ) -> tuple[Callable[[TurnEvent], None], Callable[[], None]]:
        """What tells of a turn's events with all of its words as one, and what tells of those."""
        words = list[str]()

        def tell(event: TurnEvent) -> None:
            if isinstance(event, Sampled):
                words.append(reply.next_words() if reply else "")
            else:
                self.tell(place, event, reply)

        def end() -> None:
            if reply is not None:
                words.append(reply.rest)
                reply.rest = ""
            self.tell_words(place, "".join(words))

        return tell, end

    def note_empty_turn(self, agent: str, turn: int, items: int) -> None:
        """Tell of a turn with ``for_each`` that has nothing to hand on, of so many items."""
        self.empty_turns.append(EmptyTurn(agent=agent, turn=turn, items=items))
        self.note_skipped(agent, "all of its items failed" if items else "its list is empty")

    def note_skipped(self, agent: str, reason: str = "") -> None:
        """Tell of an agent that was skipped; why, where it had more than skips."""
        self.log.info("agent skipped", agent=agent, reason=reason)
        self.emit(AgentSkipped(agent, reason))

    def note_call(self, call: Call) -> None:
        """Tell of a call of a tool that is about to be made."""
        told = dict(call.arguments)
        self.emit(ToolCalled(call.agent, call.turn, call.id, call.name, told, call.item))

    def note_result(self, place: Place, call: ToolReport) -> None:
        """Tell of a call that was made."""
        if self.log.tells:
            self.log.info("tool returned", agent=place.agent, id=call.id, seconds=call.seconds)
        self.emit(ToolReturned(place.agent, place.turn, call, place.item))

    def tell_words(self, place: Place, words: str) -> None:
        """Tell of words that may now be shown."""
        self.emit(TokenWritten(place.agent, place.turn, words, place.item))

    def record(
        self,
        agent: AgentRun,
        place: Place,
        text: str,
        finish: str,
        usage: Usage,
        *,
        composing: float,
        prompt: Context,
        thought_tokens: int,
        attempts: int,
        likelihoods: dict[str, float] | None = None,
        tool_calls: tuple[ToolReport, ...] = (),
    ) -> None:
        """Tell of a finished turn, whose times include the seconds of composing its context."""
        counts = dict(zip(_USAGE, _counts(usage), strict=True))
        counts["seconds"] += composing
        if usage.ttft_s is not None:
            counts["ttft_s"] += composing
        report = TurnReport(
            turn=place.turn,
            item=place.item,
            finish=finish,
            thought_tokens=thought_tokens,
            attempts=attempts,
            likelihoods=likelihoods,
            tool_calls=tool_calls,
            **counts,
            text=text,
            prompt=read_by(prompt),
        )
        if self.spec.private:
            report = report.without_words()
        agent.turns.append(report)
        if self.log.tells:
            self.log.info("turn finished", agent=agent.name, **asdict(report.without_words()))
        self.emit(TurnFinished(agent.name, place.turn, text, report, place.item))

    def _record_carry(self, place: Place, carried: Carried) -> None:
        edge, planned = self.spec.edges[carried.edge], self.plan.edges[carried.edge]
        told = {name: getattr(carried.report, name) for name in _CARRY}
        report = EdgeReport(
            sharer=edge.from_,
            receiver=edge.to,
            turn=place.turn,
            item=place.item,
            planned=planned.channel,
            seconds=carried.seconds,
            **{**told, "fallback": carried.report.fallback or planned.fallback},
        )
        self.edges.append(report)
        self.telemetry.carried(report)
        if self.log.tells:
            self.log.info("message carried", **report.to_dict())
        self.emit(MessageCarried(report))
        if carried.report.fallback is not None:
            cause = carried.report.fallback
            self._fall_back(FallbackTaken(edge.from_, edge.to, report.reason, cause, place.item))

    def _fall_back(self, told: FallbackTaken) -> None:
        edge = f"{told.sharer} -> {told.receiver}"
        self.fallbacks.append((edge, told.reason))
        self.log.warning("fallback to text", edge=edge, reason=told.reason)
        self.emit(told)


def read_by(context: Context) -> tuple[PromptTurn, ...]:
    """A context as words, turn by turn; turns without any are left out."""
    return tuple(
        PromptTurn(role=segment.role, text=segment.text)
        for segment in context.segments
        if segment.text
    )
