"""Running a workflow: agents fire as their messages come, states go from turn to turn by handle."""

import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from types import MappingProxyType

import anyio
import structlog
from anyio.abc import TaskGroup

from unspoken.agents.engines.base import Engine, Inbound, TurnRequest
from unspoken.agents.engines.worker import WhenRoom, at_once
from unspoken.agents.models.base import AgentModel
from unspoken.agents.models.model import LocalModel
from unspoken.agents.planning.plan import Plan
from unspoken.agents.prompts.jinja import render
from unspoken.agents.runtime.agent_run import AgentRun, InFlight
from unspoken.agents.runtime.dataflow import Action, Dataflow, Exhausted, Firing, Skipped, Unread
from unspoken.agents.runtime.events import AgentSkipped, Event, RunStarted, TurnStarted
from unspoken.agents.runtime.failures import blame, first_error
from unspoken.agents.runtime.inbox import Prepared, items_of, prepare_turn, snapshots_of
from unspoken.agents.runtime.items import gather
from unspoken.agents.runtime.next_use import NextUse
from unspoken.agents.runtime.outbox import Finished, Sender, finished
from unspoken.agents.runtime.recorder import Place, Recorder, by_item, with_composing
from unspoken.agents.runtime.reply import TurnReply, sampling_of
from unspoken.agents.runtime.report import AgentResult, RunReport, RunResult
from unspoken.agents.runtime.results import outputs_of, results_of
from unspoken.agents.runtime.states import StateStore
from unspoken.agents.spec.graph import build_graph
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import RunError
from unspoken.channels.message import Message

# Over the standard library's logger, so that a program that configures no logging sees warnings
# only.
log = structlog.wrap_logger(logging.getLogger("unspoken.scheduler"))

_NOTHING: Mapping[str, Message] = MappingProxyType({})


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
    ) -> None:
        self.spec, self.plan, self.inputs, self.emit = spec, plan, inputs, emit
        self.received, self.when_room = received, when_room
        self.run_id = uuid.uuid4().hex[:12]
        self.flow: Dataflow[InFlight] = Dataflow(build_graph(spec))
        self.agents = {
            name: AgentRun(name, agent, models[name], engines[name])
            for name, agent in spec.agents.items()
        }
        self.states, self.next_use = states, NextUse(spec)
        self.log = log.bind(run=self.run_id, workflow=spec.name)
        self.recorder = Recorder(spec, plan, emit, self.log)
        self.sender = Sender(spec, plan, inputs, self.agents)

    async def run(self) -> RunReport:
        """Run to the end.

        Raises:
            AgentError: A turn failed; the others were cancelled.
            RunTimeout: An agent took too long.
        """
        self._began = perf_counter()
        self.emit(RunStarted(self.run_id, self.spec.name, tuple(self.agents)))
        self.log.info("run started")
        self.recorder.note_planned_fallbacks()
        try:
            async with anyio.create_task_group() as tasks:
                self._act(tasks, self.flow.start())
        except BaseExceptionGroup as group:
            error = first_error(group)
            if isinstance(error, RunError):
                error.partial = self.partial()
            raise error from error.__cause__
        finally:
            self._forget()
        report = self._report()
        self.log.info("run finished", seconds=round(report.seconds, 3))
        return report

    def partial(self) -> RunResult:
        """What had finished when a run failed."""
        return RunResult({}, self.results(), self._report())

    def _report(self) -> RunReport:
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
            linears={
                name: agent.model.linears.kind
                for name, agent in self.agents.items()
                if isinstance(agent.model, LocalModel)
            },
        )

    def _forget(self) -> None:
        """Let go of every state; what was written stays."""
        self.states.clear()
        for agent in self.agents.values():
            agent.context = agent.state = None
            agent.held.clear()

    def results(self) -> dict[str, AgentResult]:
        """What each agent wrote; an agent that was skipped is not in it."""
        return results_of(self.agents)

    def outputs(self) -> dict[str, str]:
        """The workflow's outputs; without any, the words of every agent that nobody reads."""
        return outputs_of(self.spec, self.inputs, self.agents)

    def _act(self, tasks: TaskGroup, actions: list[Action[InFlight]]) -> None:
        for action in actions:
            match action:
                case Firing():
                    self.agents[action.agent].skipped = False
                    tasks.start_soon(self._guarded, tasks, action, name=f"turn of {action.agent}")
                case Skipped(agent):
                    self.agents[agent].skipped = True
                    self.log.info("agent skipped", agent=agent)
                    self.emit(AgentSkipped(agent))
                case Unread(edge, parcel):
                    self.agents[self.spec.edges[edge].to].drop(parcel)
                case Exhausted(edge, agent, parcel):
                    self.agents[agent].drop(parcel)
                    self.recorder.note_ended_loop(edge, len(self.agents[agent].texts))

    async def _guarded(self, tasks: TaskGroup, firing: Firing[InFlight]) -> None:
        """Take a turn; whatever goes wrong names the agent, and the edge where one is to blame."""
        agent = self.agents[firing.agent]
        try:
            sent = await self._take_turn(agent, firing)
        except Exception as error:
            blamed = blame(agent.name, error)
            raise blamed from error if blamed is not error else error.__cause__
        self._act(tasks, self.flow.complete(agent.name, sent))

    async def _take_turn(
        self, agent: AgentRun, firing: Firing[InFlight]
    ) -> dict[int, InFlight | None]:
        if agent.name in self.received:
            return await self._pass_received(agent, firing)
        await self._room()
        self.emit(TurnStarted(agent.name, firing.turn))
        self.log.info("turn started", agent=agent.name, turn=firing.turn)
        ends = self.flow.last_turn(agent.name)
        agent.hold(firing)
        if agent.spec.for_each is None:
            turns = [await self._one(agent, firing, {}, keep=not ends)]
            agent.texts.append(turns[0].text)
        else:
            turns = await self._each(agent, firing)
            agent.texts.append("\n\n".join(turn.text for turn in turns))
        agent.release(ends=ends)
        sent = await self.sender.send(agent, turns)
        if agent.spec.memory == "run" and agent.spec.for_each is None and not ends:
            # Without the messages it holds: their states live no longer than their tickets.
            agent.remember(turns[0].later, turns[0].state, turns[0].context.ids)
        else:
            agent.remember(None, None)
            for turn in turns:
                if turn.state is not None:
                    agent.engine.release(turn.state)
        self._expect(agent, sent)
        return sent

    def _expect(self, agent: AgentRun, sent: Mapping[int, InFlight | None]) -> None:
        """Say when the states that a turn left behind are needed."""
        for number, message in sent.items():
            if message is not None and message.state is not None:
                self.states.expect(message.state, self.next_use.of_edge(number))
        if agent.state is not None:
            self.states.expect(agent.state, self.next_use.of_agent(agent.name))

    async def _room(self) -> None:
        """Wait until whoever follows the events is not far behind."""
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
        bare = replace(message, state=None)
        if message.state is None:
            return await self.sender.publish(agent, lambda number: bare, None)
        state = self.states.put(message.state, message.context, agent.name)
        sent = await self.sender.publish(agent, lambda number: bare, state)
        agent.engine.release(state)
        return sent

    async def _each(self, agent: AgentRun, firing: Firing[InFlight]) -> list[Finished]:
        """Run an agent once per item; items that are ready together are computed together."""
        rows = items_of(agent, self.inputs)
        agent.items = [""] * len(rows)
        turns = await gather(
            len(rows), lambda number: self._item(agent, firing, rows, number), self._room
        )
        return [turn for turn in turns if turn is not None]

    async def _item(
        self, agent: AgentRun, firing: Firing[InFlight], rows: Sequence[object], number: int
    ) -> Finished | None:
        """The turn of one item; None where it failed and may be left out."""
        try:
            turn = await self._one(agent, firing, {"item": rows[number]}, keep=False, item=number)
        except Exception as error:
            blamed = blame(agent.name, error, f"item {number + 1} of {len(rows)}")
            if agent.spec.on_error == "fail":
                raise blamed from error if blamed is not error else error.__cause__
            self.recorder.note_failed_item(Place(agent.name, firing.turn, number), blamed.found)
            return None
        agent.items[number] = turn.text
        return turn

    async def _one(
        self,
        agent: AgentRun,
        firing: Firing[InFlight],
        extra: Mapping[str, object],
        *,
        keep: bool,
        item: int | None = None,
    ) -> Finished:
        """Compose a context, have it computed, and close the turn.

        Args:
            agent: Whose turn it is.
            firing: Why it fires.
            extra: What its templates may read besides.
            keep: Whether the agent will go on from this turn.
            item: Number of the item that the turn is of; None without ``for_each``.
        """
        began, place = perf_counter(), Place(agent.name, firing.turn, item)
        prepared = self._prepare(agent, firing, extra)
        settings, reply = agent.spec.generate, None
        if settings is not None:
            reply = TurnReply(agent.model, prepared.context, tuple(settings.stop))
        wanted = (keep and agent.spec.memory == "run") or self.sender.feeds_cache(agent)
        request = TurnRequest(
            ids=reply.ids if reply else prepared.context.ids,
            inbound=prepared.placed,
            history=agent.history,
            sampling=sampling_of(settings, agent.model, turn=firing.turn, item=item or 0)
            if settings
            else None,
            reply=reply,
            keep_state=wanted,
            capture=self.sender.captures(agent) if wanted else (),
            snapshots=snapshots_of(prepared.context, agent.spec.snapshots),
            owner=agent.name,
            limit_s=agent.spec.timeout,
        )
        composing = perf_counter() - began
        outcome = await agent.engine.turn(
            request, lambda event: self.recorder.tell(place, event, reply)
        )
        if reply is not None and reply.rest:
            self.recorder.tell_words(place, reply.rest)
        turn = finished(agent, prepared.context, reply, outcome.state)
        usage, text = with_composing(outcome.usage, composing), reply.text if reply else ""
        self.recorder.record(agent, place, text, outcome.finish, usage, turn.thought_tokens)
        return turn

    def _prepare(
        self, agent: AgentRun, firing: Firing[InFlight], extra: Mapping[str, object]
    ) -> Prepared:
        again = (
            agent.spec.memory == "turn" or agent.context is None or agent.spec.for_each is not None
        )
        variables = {"inputs": dict(self.inputs), "turn": firing.turn, **extra}
        system = None if agent.spec.system is None else render(agent.spec.system, variables)
        return prepare_turn(
            agent.model.context_builder,
            agent.spec.prompt,
            [
                self._inbound(agent, number, again or number in firing.fresh)
                for number in firing.inbox
            ],
            variables,
            system=system,
            earlier=None if again else agent.context,
            leading=self.plan.leading.get(agent.name, ()),
        )

    def _inbound(self, agent: AgentRun, number: int, fresh: bool) -> Inbound:
        """A message that an agent holds, on its way into a turn."""
        edge, held = self.spec.edges[number], agent.held[number]
        return Inbound(
            edge=number,
            sharer=edge.from_,
            receiver=edge.to,
            channel=self.plan.channels[number],
            message=held.message,
            state=held.state,
            role=edge.as_,
            fresh=fresh,
            fallback=edge.fallback == "text",
        )
