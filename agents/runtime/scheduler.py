"""Running a workflow: agents fire as their messages come, states go from turn to turn by handle."""

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from time import perf_counter
from types import MappingProxyType

import anyio
import structlog
from anyio.abc import TaskGroup

from unspoken.agents.engines.local import worker_for
from unspoken.agents.engines.turn import Inbound, TurnOutcome, TurnRequest, run_turn
from unspoken.agents.models.model import LocalModel
from unspoken.agents.planning.plan import Plan
from unspoken.agents.prompts.context import Context
from unspoken.agents.prompts.jinja import evaluate, render
from unspoken.agents.runtime.agent_run import (
    AgentRun,
    InFlight,
    compressed,
    drop,
    hold,
    release,
    with_state,
)
from unspoken.agents.runtime.dataflow import Action, Dataflow, Exhausted, Firing, Skipped, Unread
from unspoken.agents.runtime.events import AgentSkipped, Event, LoopEnded, RunStarted, TurnStarted
from unspoken.agents.runtime.inbox import Incoming, Prepared, prepare_turn
from unspoken.agents.runtime.outbox import Sender
from unspoken.agents.runtime.recorder import Recorder
from unspoken.agents.runtime.report import RunReport
from unspoken.agents.runtime.states import StateStore
from unspoken.agents.spec.graph import build_graph
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.base import Arrival
from unspoken.channels.errors import AgentError, InputError, RunError, RunTimeout, UnspokenError
from unspoken.channels.message import Message

__all__ = ["Scheduler"]

# Over the standard library's logger, so that a program that configures no logging sees warnings
# only.
log = structlog.wrap_logger(logging.getLogger("unspoken.scheduler"))

_NOTHING: Mapping[str, Message] = MappingProxyType({})


class Scheduler:
    """One run of a workflow.

    Args:
        spec: A valid workflow.
        models: The model of every agent, by agent.
        plan: Its plan.
        inputs: Checked input values.
        emit: Called on the event loop with every event.
        received: Messages of agents that spoke elsewhere, by agent; checked.
    """

    def __init__(
        self,
        spec: WorkflowSpec,
        models: Mapping[str, LocalModel],
        plan: Plan,
        inputs: Mapping[str, object],
        emit: Callable[[Event], None],
        received: Mapping[str, Message] = _NOTHING,
    ) -> None:
        self.spec, self.plan, self.inputs, self.emit = spec, plan, inputs, emit
        self.received = received
        self.run_id = uuid.uuid4().hex[:12]
        self.flow: Dataflow[InFlight] = Dataflow(build_graph(spec))
        self.agents = {name: AgentRun(name, one, models[name]) for name, one in spec.agents.items()}
        self.shelf = StateStore()
        self.log = log.bind(run=self.run_id, workflow=spec.name)
        self.recorder = Recorder(spec, plan, emit, self.log)
        self.sender = Sender(spec, plan, inputs, self.agents, self.shelf)

    async def run(self) -> RunReport:
        """Run to the end.

        Raises:
            AgentError: A turn failed; the others were cancelled.
            RunTimeout: The run, or an agent, took too long.
        """
        began = perf_counter()
        self.emit(RunStarted(self.run_id, self.spec.name, tuple(self.agents)))
        self.log.info("run started")
        self.recorder.note_planned_fallbacks()
        try:
            with anyio.fail_after(self.spec.timeout):
                async with anyio.create_task_group() as tasks:
                    self._act(tasks, self.flow.start())
        except TimeoutError:
            raise RunTimeout(
                f"the run took longer than its timeout of {self.spec.timeout} s",
                fix="raise the workflow's timeout, or shorten the agents' work",
            ) from None
        except BaseExceptionGroup as group:
            error = _first(group)
            raise error from error.__cause__
        finally:
            self._forget()
        seconds = perf_counter() - began
        self.log.info("run finished", seconds=round(seconds, 3))
        return RunReport(
            self.run_id,
            self.spec.name,
            {name: tuple(one.turns) for name, one in self.agents.items()},
            tuple(self.recorder.edges),
            seconds,
            tuple(self.recorder.fallbacks),
            self.shelf.peak_bytes,
        )

    def _forget(self) -> None:
        """Let go of every state; what was written stays."""
        self.shelf.clear()
        for agent in self.agents.values():
            agent.context = agent.state = None
            agent.held.clear()

    def texts(self) -> dict[str, tuple[str, ...]]:
        """What each agent wrote, turn by turn; an agent that never had a turn is not in it."""
        return {name: tuple(one.texts) for name, one in self.agents.items() if one.texts}

    def outputs(self) -> dict[str, str]:
        """The workflow's outputs; without any, the words of every agent that nobody reads."""
        texts = {
            name: {
                "text": one.texts[-1] if one.texts else "",
                "skipped": one.skipped,
                "items": list(one.items),
            }
            for name, one in self.agents.items()
        }
        context = {"inputs": dict(self.inputs), **texts}
        if self.spec.outputs:
            return {name: render(template, context) for name, template in self.spec.outputs.items()}
        read = {edge.from_ for edge in self.spec.edges if not edge.loop}
        return {name: str(texts[name]["text"]) for name in self.agents if name not in read}

    def _act(self, tasks: TaskGroup, happenings: list[Action[InFlight]]) -> None:
        for happening in happenings:
            match happening:
                case Firing():
                    self.agents[happening.agent].skipped = False
                    tasks.start_soon(
                        self._guarded, tasks, happening, name=f"turn of {happening.agent}"
                    )
                case Skipped(agent):
                    self.agents[agent].skipped = True
                    self.log.info("agent skipped", agent=agent)
                    self.emit(AgentSkipped(agent))
                case Unread(item=parcel):
                    drop(self.shelf, parcel)
                case Exhausted(edge, _, parcel):
                    drop(self.shelf, parcel)
                    ends = self.spec.edges[edge]
                    self.log.info("loop ended", edge=f"{ends.from_} -> {ends.to}")
                    self.emit(LoopEnded(ends.from_, ends.to))

    async def _guarded(self, tasks: TaskGroup, firing: Firing[InFlight]) -> None:
        """Take a turn; whatever goes wrong names the agent, and the edge where one is to blame."""
        agent = self.agents[firing.agent]
        try:
            with anyio.fail_after(agent.spec.timeout):
                sent = await self._take_turn(agent, firing)
        except TimeoutError:
            raise RunTimeout(
                f"agent {agent.name!r} took longer than its timeout of {agent.spec.timeout} s",
                agent=agent.name,
                fix="raise the agent's timeout, or lower its max_new_tokens",
            ) from None
        except Exception as error:
            raise _blame(agent.name, error) from error
        self._act(tasks, self.flow.complete(agent.name, sent))

    async def _take_turn(
        self, agent: AgentRun, firing: Firing[InFlight]
    ) -> dict[int, InFlight | None]:
        if agent.name in self.received:
            return await self._pass_received(agent, firing)
        self.emit(TurnStarted(agent.name, firing.turn))
        self.log.info("turn started", agent=agent.name, turn=firing.turn)
        ends = self.flow.last_turn(agent.name)
        hold(self.shelf, agent, firing)
        if agent.spec.for_each is None:
            outcome, prompt_at = await self._one(agent, firing, {}, keep=not ends)
            agent.texts.append(
                outcome.text if agent.spec.generate else self._read(outcome, prompt_at)
            )
            results = [(outcome, prompt_at)]
        else:
            results = await self._each(agent, firing)
            agent.items = tuple(
                one.text if agent.spec.generate else self._read(one, at) for one, at in results
            )
            agent.texts.append("\n\n".join(agent.items))
        if agent.spec.memory == "run" and agent.spec.for_each is None and not ends:
            # Without the messages it holds: their states live on the shelf, no longer than that
            # keeps them.
            agent.context = results[0][0].context.bare()
            agent.state = results[0][0].state
        else:
            agent.context = agent.state = None
        release(self.shelf, agent, ends)
        return await self.sender.send(agent, results)

    async def _pass_received(
        self, agent: AgentRun, firing: Firing[InFlight]
    ) -> dict[int, InFlight | None]:
        """Send on what an agent has published elsewhere."""
        message = self.received[agent.name]
        self.log.info("message received", agent=agent.name, tokens=message.tokens)
        for parcel in firing.inbox.values():
            drop(self.shelf, parcel)
        agent.texts.append(message.text)
        bare = replace(message, state=None)
        return await self.sender.publish(agent, lambda number: bare, message.state)

    def _read(self, outcome: TurnOutcome, prompt_at: int) -> str:
        """The text of an agent that only reads is its prompt."""
        return outcome.context.segments[prompt_at].text

    async def _each(
        self, agent: AgentRun, firing: Firing[InFlight]
    ) -> list[tuple[TurnOutcome, int]]:
        """Run an agent once per item, in order."""
        rows = evaluate(str(agent.spec.for_each), {"inputs": dict(self.inputs)})
        if not isinstance(rows, list | tuple):
            raise InputError(
                f"for_each of {agent.name!r} gives {type(rows).__name__}",
                expected="a list of items",
            )
        return [await self._one(agent, firing, {"item": row}, keep=False) for row in rows]

    async def _one(
        self, agent: AgentRun, firing: Firing[InFlight], extra: Mapping[str, object], *, keep: bool
    ) -> tuple[TurnOutcome, int]:
        began = perf_counter()
        prepared, prompt_at = self._prepare(agent, firing, extra)
        composing = perf_counter() - began
        deliveries = tuple(
            Inbound(
                one.number,
                f"{one.edge.from_} -> {one.edge.to}",
                one.channel,
                _arrival(one.message, prepared.context),
                one.edge.fallback == "text",
                compressed(self.shelf, agent.held[one.number]),
            )
            for one in prepared.placed
        )
        own = (agent.context.ids, agent.state) if agent.context and agent.state else None
        wanted = (keep and agent.spec.memory == "run") or self.sender.feeds_cache(agent)
        request = TurnRequest(
            prepared.context,
            deliveries,
            own,
            agent.spec.generate,
            wanted,
            self.sender.captures(agent) if wanted else (),
        )
        outcome = await worker_for(agent.model.device).run(
            run_turn(agent.model, request),
            lambda step: self.recorder.pass_on(agent.name, firing.turn, step),
        )
        self.recorder.record(agent, firing.turn, outcome, composing)
        return outcome, prompt_at

    def _prepare(
        self, agent: AgentRun, firing: Firing[InFlight], extra: Mapping[str, object]
    ) -> tuple[Prepared, int]:
        again = (
            agent.spec.memory == "turn" or agent.context is None or agent.spec.for_each is not None
        )
        incoming = [
            Incoming(
                number,
                self.spec.edges[number],
                self.plan.channels[number],
                with_state(self.shelf, agent.held[number]),
                fresh=again or number in firing.fresh,
            )
            for number in firing.inbox
        ]
        variables = {"inputs": dict(self.inputs), "turn": firing.turn, **extra}
        system = None if agent.spec.system is None else render(agent.spec.system, variables)
        earlier = None if again else agent.context
        prepared = prepare_turn(
            agent.model.context_builder,
            agent.spec.prompt,
            incoming,
            variables,
            system=system,
            earlier=earlier,
        )
        return prepared, len(prepared.context.segments) - 1


def _arrival(message: Message, context: Context) -> Arrival:
    return Arrival(message, context.spans(message), context.ids, context.texts(message))


def _blame(agent: str, error: Exception) -> RunError:
    if isinstance(error, RunError) and error.agent:
        return error
    edge = error.edge if isinstance(error, RunError) else ""
    place = f"agent {agent!r}" + (f", on the edge {edge}" if edge else "")
    known = isinstance(error, UnspokenError)
    found = error.found if isinstance(error, UnspokenError) else f"{type(error).__name__}: {error}"
    blamed = AgentError(
        f"{place} failed: {found}",
        agent=agent,
        edge=edge,
        expected=error.expected if isinstance(error, UnspokenError) else "",
        fix=error.fix if isinstance(error, UnspokenError) else "",
    )
    cause = error.__cause__ if isinstance(error, RunError) else error
    if known and isinstance(cause, InputError):
        blamed.exit_code = InputError.exit_code
    return blamed


def _first(error: BaseException) -> BaseException:
    """The first error of a group, the one that made the others stop."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
