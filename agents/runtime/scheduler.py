"""Running a workflow: agents fire as their messages come, states go from turn to turn by handle."""

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from time import perf_counter
from types import MappingProxyType

import anyio

from unspoken.agents.engines.base import Engine
from unspoken.agents.engines.worker import WhenRoom, at_once
from unspoken.agents.models.base import AgentModel
from unspoken.agents.models.model import LocalModel
from unspoken.agents.planning.plan import Plan
from unspoken.agents.runs.journal import Journal
from unspoken.agents.runs.records import ToolReport
from unspoken.agents.runtime.agent_run import AgentRun, InFlight, agents_of
from unspoken.agents.runtime.answers import outputs_of, results_of, with_inner
from unspoken.agents.runtime.dataflow import Action, Dataflow, Exhausted, Firing, Skipped, Unread
from unspoken.agents.runtime.event_data import keeper
from unspoken.agents.runtime.events import Event, RunStarted, stamped
from unspoken.agents.runtime.failures import blame, first_error
from unspoken.agents.runtime.items import Ready, by_item
from unspoken.agents.runtime.next_use import NextUse
from unspoken.agents.runtime.outbox import Finished, Sender
from unspoken.agents.runtime.people import OnQuestion, People, Waiting
from unspoken.agents.runtime.recorder import Recorder, RunLog
from unspoken.agents.runtime.report import AgentResult, RunReport, RunResult
from unspoken.agents.runtime.states import StateStore
from unspoken.agents.runtime.telemetry import Telemetry
from unspoken.agents.runtime.tool_use import unread as unread_calls
from unspoken.agents.runtime.turns import Turns
from unspoken.agents.sessions.records import Earlier
from unspoken.agents.spec.graph import build_graph
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.agents.tools.toolbox import Toolbox
from unspoken.channels.errors import RunError, RunWaiting
from unspoken.channels.message import Message

_NOTHING: Mapping[str, Message] = MappingProxyType({})
_NO_EARLIER: Mapping[str, Earlier] = MappingProxyType({})


def nobody(event: Event) -> None:
    """Takes events that nobody follows; they need no run and no time."""


class Scheduler:
    """One run of a workflow.

    Args:
        spec: A valid workflow.
        models: The model of every agent, by agent: how its words become ids.
        engines: What computes every agent's turns, by agent.
        states: Where these engines keep their states.
        plan: The workflow's plan.
        inputs: Checked input values.
        emit: Called on the event loop with every event.
        received: Messages of agents that spoke elsewhere, by agent; checked.
        when_room: Asked before each turn, which waits until events have room.
        run_id: The run's id; None for a new one.
        book: What keeps the run, where it is kept.
        on_question: Answers what people are asked, while the run goes on.
        toolbox: The tools of its agents.
        others: Inputs that some agents read in place of the run's, by agent; checked.
        on_message: Told of every message that is sent, with the number of its edge.
        scope: What stands before the names of its agents, where it is inside of another run.
        earlier: What agents go on from that had turns in a session before.
        leave: Takes what they leave for the next run, once this one has ended well.
    """

    def __init__(
        self,
        spec: WorkflowSpec,
        *,
        models: Mapping[str, AgentModel],
        engines: Mapping[str, Engine],
        states: StateStore,
        plan: Plan,
        inputs: Mapping[str, object],
        emit: Callable[[Event], None],
        received: Mapping[str, Message] = _NOTHING,
        when_room: WhenRoom = at_once,
        run_id: str | None = None,
        book: Journal | None = None,
        on_question: OnQuestion | None = None,
        toolbox: Toolbox | None = None,
        others: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
        on_message: Callable[[int, Message], object] | None = None,
        scope: str = "",
        earlier: Mapping[str, Earlier] = _NO_EARLIER,
        leave: Callable[[Mapping[str, Earlier]], Awaitable[None]] | None = None,
    ) -> None:
        self.spec, self.plan, self.inputs = spec, plan, inputs
        self.received, self.when_room = received, when_room
        self.run_id = run_id or uuid.uuid4().hex[:12]
        self._emit, self._book = emit, book
        # An event of a sub-workflow is kept where it gets its path: by the run around it.
        self._keep = None if book is None or scope else keeper(book.told, spec)
        self.people = People(spec, self.emit, book, on_question, scope)
        self.flow: Dataflow[InFlight] = Dataflow(build_graph(spec))
        self.agents, self._leave = agents_of(spec, models, engines, earlier), leave
        self.states, self.next_use = states, NextUse(spec)
        self._ready = Ready(self._take)
        self._inner: dict[str, RunResult] = {}
        self.log = RunLog(run=self.run_id, workflow=spec.name)
        self.telemetry = Telemetry(spec.name, self.run_id)
        self.recorder = Recorder(spec, plan, self.emit, self.log, self.telemetry)
        self.sender = Sender(spec, plan, inputs, self.agents, others, on_message)
        self.turns = Turns(
            spec,
            plan=plan,
            inputs=inputs,
            sender=self.sender,
            recorder=self.recorder,
            people=self.people,
            room=self._room,
            toolbox=toolbox,
            others=others,
        )

    def emit(self, event: Event) -> None:
        """Tell of an event, and keep it where the run is kept."""
        if self._keep is None and self._emit is nobody:
            return
        event = stamped(event, self.run_id)
        self.keep(event)
        self._emit(event)

    def keep(self, event: Event) -> None:
        """Keep an event, where the run is kept, and tell nobody."""
        if self._keep is not None:
            self._keep(event)

    async def run(self) -> RunReport:
        """Run to the end.

        Raises:
            AgentError: A turn failed; the others were cancelled.
            RunTimeout: An agent took too long.
            RunWaiting: A person has to answer before it goes on.
        """
        self._began = perf_counter()
        self.emit(RunStarted(self.spec.name, tuple(self.agents)))
        self.log.info("run started")
        self.recorder.note_planned_fallbacks()
        try:
            with self.telemetry.run() as stopped_by:
                async with anyio.create_task_group() as tasks:
                    self._act(self.flow.start())
                    await self._ready.work(tasks)
                if self.people.open:
                    stopped_by(Waiting.__name__)
            if self._book is not None:
                await self._book.flush()
            if self._leave is not None and not self.people.open:
                self.outputs()  # one that fails leaves the session as it was
                await self._leave(self._left())
        except BaseExceptionGroup as group:
            error = first_error(group)
            if isinstance(error, RunError):
                error.partial = self.partial()
            raise error from error.__cause__
        finally:
            self._forget()
            if self._book is not None:  # what has finished is kept, whatever ends the run
                await self._book.flush(quiet=True)
        if self.people.open:
            waiting = RunWaiting(self.run_id, self.people.open)
            waiting.partial = self.partial()
            raise waiting
        report = self._report()
        self.log.info("run finished", seconds=round(report.seconds, 3))
        return report

    def partial(self) -> RunResult:
        """What had finished when a run failed."""
        outputs = outputs_of(self.spec, self.inputs, self.agents, finished=True)
        return RunResult(outputs, self.results(), self._report())

    def take_in(self, place: str, inner: "Scheduler") -> None:
        """Take in what a run inside of this one gave and cost, whatever its end."""
        self._inner[place] = inner.partial()

    def _report(self) -> RunReport:
        inners = {place: inner.report for place, inner in self._inner.items()}
        return with_inner(self._own_report(), inners)

    def _own_report(self) -> RunReport:
        return RunReport(
            run_id=self.run_id,
            workflow=self.spec.name,
            agents={name: by_item(agent.turns) for name, agent in self.agents.items()},
            edges=by_item(self.recorder.edges),
            seconds=perf_counter() - self._began,
            fallbacks=tuple(self.recorder.fallbacks),
            peak_state_bytes=self.states.usage.peak_bytes,
            shared_state_bytes=self.states.usage.peak_shared_bytes,
            spilled_state_bytes=self.states.usage.spilled_bytes,
            prefix_hits=self.states.usage.prefix_hits,
            loops_ended=tuple(self.recorder.loops_ended),
            failed_items=by_item(self.recorder.failed_items),
            failed_turns=tuple(self.recorder.failed_turns),
            empty_turns=tuple(self.recorder.empty_turns),
            late_messages=tuple(self.recorder.late_messages),
            unknown_calls=self._unknown_calls(),
            linears={
                name: agent.model.linears.kind
                for name, agent in self.agents.items()
                if isinstance(agent.model, LocalModel)
            },
        )

    def _unknown_calls(self) -> tuple[ToolReport, ...]:
        calls = () if self._book is None else unread_calls(self._book.unknown)
        return tuple(call.without_words() for call in calls) if self.spec.private else calls

    def _left(self) -> dict[str, Earlier]:
        """What the agents of a session would go on from."""
        return {
            name: Earlier(context=agent.context, ids=agent.ids, state=agent.state)
            for name, agent in self.agents.items()
            if agent.spec.memory == "session" and agent.context is not None
        }

    def _forget(self) -> None:
        """Let go of every state; what was written stays."""
        self.states.clear()
        for agent in self.agents.values():
            agent.context = agent.state = None
            agent.held.clear()

    def results(self) -> dict[str, AgentResult]:
        """What each agent wrote; an agent that was skipped is not in it."""
        results = results_of(self.agents)
        for place, inner in self._inner.items():
            results |= {f"{place}/{name}": result for name, result in inner.agents.items()}
        return results

    def outputs(self) -> dict[str, str]:
        """The workflow's outputs; without any, the words of every agent that nobody reads."""
        return outputs_of(self.spec, self.inputs, self.agents)

    def _act(self, actions: list[Action[InFlight]]) -> None:
        """Do what happens next; turns that are ready are taken in order."""
        for action in actions:
            match action:
                case Firing():
                    self.agents[action.agent].skipped = False
                    self._ready.turns.append(action)
                case Skipped(agent):
                    self.agents[agent].skipped = True
                    self.recorder.note_skipped(agent)
                case Unread(edge, parcel, late):
                    self.agents[self.spec.edges[edge].to].drop(parcel)
                    if late:
                        self.recorder.note_late_message(edge)
                case Exhausted(edge, agent, parcel):
                    self.agents[agent].drop(parcel)
                    self.recorder.note_ended_loop(edge, len(self.agents[agent].texts))

    async def _take(self, firing: Firing[InFlight]) -> None:
        """Take a turn; whatever goes wrong names the agent, and the edge where one is to blame."""
        agent = self.agents[firing.agent]
        try:
            if agent.name in self.received:
                sent = await self._pass_received(agent, firing)
            else:
                sent = await self._take_turn(agent, firing)
            sent = await self.people.handed_over(agent, firing.turn, sent)
        except Waiting:
            return
        except Exception as error:
            blamed = blame(agent.name, error)
            raise blamed from error if blamed is not error else error.__cause__
        self._act(self.flow.complete(agent.name, sent))

    async def _take_turn(
        self, agent: AgentRun, firing: Firing[InFlight]
    ) -> dict[int, InFlight | None]:
        await self._room()
        self.recorder.begin(agent, firing.turn)
        ends = self.flow.last_turn(agent.name)
        agent.hold(firing)
        with self.telemetry.turn(agent.name, firing.turn):
            turns = await self.turns.take(agent, firing, keep=not ends)
        if not turns:  # it failed, or has no items to hand on
            agent.skipped = True
            if turns is not None:
                self.recorder.note_empty_turn(agent.name, firing.turn, len(agent.items))
            agent.release(ends=ends)
            if agent.spec.memory != "session":
                agent.remember(None, None)
            return self.sender.skips(agent)
        agent.texts.append("\n\n".join(turn.text for turn in turns))
        agent.release(ends=ends)
        sent = await self.sender.send(agent, turns)
        self._go_on(agent, turns, ends=ends)
        self._expect(agent, sent)
        return sent

    def _go_on(self, agent: AgentRun, turns: Sequence[Finished], *, ends: bool) -> None:
        """Keep what the agent's next turn goes on from, and let go of the rest."""
        if agent.remembers(ends=ends):
            # Without the messages it holds: their states live no longer than their tickets.
            agent.remember(turns[0].later, turns[0].state, turns[0].context.ids)
            return
        agent.remember(None, None)
        for turn in turns:
            if turn.state is not None:
                agent.engine.release(turn.state)

    def _expect(self, agent: AgentRun, sent: Mapping[int, InFlight | None]) -> None:
        """Say when the states that a turn left behind are needed."""
        for number, message in sent.items():
            if message is not None and message.state is not None:
                self.states.expect(message.state, self.next_use.of_edge(number))
        if agent.state is not None:
            self.states.expect(agent.state, self.next_use.of_agent(agent.name))

    async def _room(self) -> None:
        """Wait until whoever follows the events is not far behind."""
        if self.when_room is at_once:
            return
        there = anyio.Event()
        self.when_room(there.set)
        if not there.is_set():
            await there.wait()

    async def _pass_received(
        self, agent: AgentRun, firing: Firing[InFlight]
    ) -> dict[int, InFlight | None]:
        """Send on what an agent has published elsewhere."""
        message = self.received[agent.name]
        self.log.info("message received", agent=agent.name, tokens=message.tokens)
        for unread in firing.inbox.values():
            agent.drop(unread)
        agent.texts.append(message.text)
        if message.state is None:
            return await self.sender.publish(agent, lambda number: message, None)
        bare, state = await agent.engine.admit(message)
        sent = await self.sender.publish(agent, lambda number: bare, state)
        agent.engine.release(state)
        return sent
