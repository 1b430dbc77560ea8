"""The turns of a run: composed, computed, tried again where that may help, and closed."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from types import MappingProxyType

from unspoken.agents.delegates.model import Delegate
from unspoken.agents.engines.base import (
    History,
    Inbound,
    TurnEvent,
    TurnOutcome,
    TurnRequest,
    Usage,
)
from unspoken.agents.engines.local import LocalEngine
from unspoken.agents.planning.plan import Plan
from unspoken.agents.prompts.context import Context
from unspoken.agents.prompts.jinja import render
from unspoken.agents.runs.engine import computing
from unspoken.agents.runtime.agent_run import AgentRun, InFlight
from unspoken.agents.runtime.answers import weighed_choices
from unspoken.agents.runtime.dataflow import Firing
from unspoken.agents.runtime.failures import blame, retried, unless_idle
from unspoken.agents.runtime.inbox import (
    Prepared,
    items_of,
    prepare_inputs,
    prepare_turn,
    require_room,
    snapshots_of,
)
from unspoken.agents.runtime.items import gather
from unspoken.agents.runtime.outbox import Finished, Sender, finished, standing_in
from unspoken.agents.runtime.people import People, Waiting
from unspoken.agents.runtime.recorder import Place, Recorder
from unspoken.agents.runtime.reply import TurnReply, sampling_of
from unspoken.agents.runtime.tool_use import ToolUse, summed
from unspoken.agents.shapes.calls import calling_shape
from unspoken.agents.shapes.shape import Shape, shape_of
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.agents.tools.toolbox import Toolbox
from unspoken.channels.errors import StoreError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A turn that is to be taken.

    Attributes:
        agent: Whose it is.
        firing: Why it fires.
        keep: Whether the agent will go on from it.
        extra: What its templates may read besides.
        item: Number of the item that it is of; None without ``for_each``.
    """

    agent: AgentRun
    firing: Firing[InFlight]
    keep: bool
    extra: Mapping[str, object]
    item: int | None = None

    @property
    def place(self) -> Place:
        """Whose turn it is."""
        return Place(self.agent.name, self.firing.turn, self.item)

    @property
    def again(self) -> bool:
        """Whether its context begins anew."""
        spec = self.agent.spec
        return spec.memory == "turn" or self.agent.context is None or spec.for_each is not None


@dataclass(frozen=True, slots=True)
class _Passed:
    """What the passes of a turn left behind: those of the last one, and the work of all."""

    context: Context
    reply: TurnReply | None
    outcome: TurnOutcome
    usage: Usage


class Turns:
    """Takes the turns of one run.

    Args:
        spec: The workflow.
        plan: Its plan.
        inputs: Checked input values.
        sender: The out-edges.
        recorder: The record of the run.
        people: Who has a say in a turn.
        room: Waits until whoever follows the events is not far behind.
        toolbox: The tools of its agents.
        others: Inputs that some agents read in place of the run's, by agent.
    """

    def __init__(
        self,
        spec: WorkflowSpec,
        *,
        plan: Plan,
        inputs: Mapping[str, object],
        sender: Sender,
        recorder: Recorder,
        people: People,
        room: Callable[[], Awaitable[None]],
        toolbox: Toolbox | None = None,
        others: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
    ) -> None:
        self.others = others
        self.toolbox = toolbox or Toolbox(allowed=False)
        self.spec, self.plan, self.inputs = spec, plan, inputs
        self.sender, self.recorder, self.people, self.room = sender, recorder, people, room

    async def take(
        self, agent: AgentRun, firing: Firing[InFlight], *, keep: bool
    ) -> list[Finished] | None:
        """An agent's turn, or one per item; None where it failed. Without any, readers get skips.

        Args:
            agent: Whose turn it is.
            firing: Why it fires.
            keep: Whether the agent will go on from this turn.

        Raises:
            Exception: Whatever went wrong, where the agent does not say what else to do.
        """
        if agent.spec.for_each is not None:
            return await self._each(agent, firing)
        turn = await self._one(_Asked(agent=agent, firing=firing, keep=keep, extra={}))
        return None if turn is None else [turn]

    async def _each(self, agent: AgentRun, firing: Firing[InFlight]) -> list[Finished]:
        """Run an agent once per item; items that are ready together are computed together."""
        rows = items_of(agent, self.others.get(agent.name, self.inputs))
        agent.items, waiting = [""] * len(rows), list[int]()

        async def one(number: int) -> Finished | None:
            extra = {"item": rows[number]}
            self.recorder.begin_item(Place(agent.name, firing.turn, number), len(rows))
            asked = _Asked(agent=agent, firing=firing, keep=False, extra=extra, item=number)
            try:
                turn = await self._one(asked, f"item {number + 1} of {len(rows)}")
            except Waiting:  # the others go on, and ask for themselves
                waiting.append(number)
                return None
            agent.items[number] = turn.text if turn else ""
            return turn

        turns = await gather(len(rows), one, self.room)
        if waiting:
            raise Waiting
        return [turn for turn in turns if turn is not None]

    async def _one(self, asked: _Asked, at: str = "") -> Finished | None:
        """A turn, after as many tries as the agent has; what stands in for one that failed.

        Args:
            asked: The turn.
            at: Where it stands among the agent's items, for errors.
        """
        agent, tried = asked.agent, 1

        def failed(attempt: int, error: Exception) -> None:
            nonlocal tried
            tried = attempt + 1
            self.recorder.note_retry(asked.place, attempt, blame(agent.name, error, at).found)

        try:
            return await retried(agent.spec.retry, lambda: self._computed(asked, tried), failed)
        except Exception as error:
            blamed = blame(agent.name, error, at)
            if agent.spec.on_error == "fail" or isinstance(error, StoreError):
                raise blamed from error if blamed is not error else error.__cause__
            instead = agent.spec.default
            self.recorder.note_failed_turn(asked.place, blamed.found, tried, instead)
        return None if instead is None else self._standing_in(asked, instead)

    def _standing_in(self, asked: _Asked, text: str) -> Finished:
        """A turn that nobody computed, as if the agent had written this text."""
        earlier = None if asked.again else asked.agent.context
        if asked.agent.spec.generate is not None:
            earlier = None
            with suppress(Exception):  # that is what failed: nothing is known of the prompt
                earlier = self._prepare(asked).context
        return standing_in(asked.agent, earlier, text)

    async def _computed(self, asked: _Asked, attempt: int) -> Finished:
        """Compose a context, have it computed, and close the turn."""
        began, agent, place = perf_counter(), asked.agent, asked.place
        prepared = self._prepare(asked)
        use = ToolUse(self.toolbox, agent, place, self.recorder)
        composing = perf_counter() - began
        passed = await self._passes(asked, prepared, use)
        prompt_at = len(prepared.context.segments) - 1
        turn = finished(agent, passed.context, prompt_at, passed.reply, passed.outcome.state)
        self.recorder.record(
            agent,
            place,
            passed.reply.text if passed.reply else "",
            passed.outcome.finish,
            passed.usage,
            composing=composing,
            prompt=passed.context,
            thought_tokens=turn.thought_tokens,
            likelihoods=weighed_choices(agent.spec.generate, passed.outcome.likelihoods),
            tool_calls=tuple(use.reports),
            attempts=attempt,
        )
        return turn

    async def _passes(self, asked: _Asked, prepared: Prepared, use: ToolUse) -> _Passed:
        """Have the context computed, once more after each call of a tool."""
        agent, settings, place = asked.agent, asked.agent.spec.generate, use.place
        context, history, inbound = prepared.context, agent.history, prepared.placed
        usages, held = list[Usage](), None
        try:
            while True:
                reply = None
                if settings is not None:
                    reply = TurnReply(agent.model, context, tuple(settings.stop))
                request = self._request(asked, context, use, inbound, history, reply)
                outcome, reply = await self.people.turn(
                    agent, request, context, partial(self._outcome, agent, request, place, reply)
                )
                if held is not None:
                    agent.engine.release(held)
                held = outcome.state
                usages.append(outcome.usage)
                if reply is not None and reply.rest:
                    self.recorder.tell_words(place, reply.rest)
                then = None if reply is None else await use.after(reply)
                if then is None or held is None:
                    return _Passed(context, reply, outcome, summed(usages))
                context, history, inbound = then, History(outcome.ids, held), ()
        except BaseException:
            if held is not None:
                agent.engine.release(held)
            raise

    def _request(
        self,
        asked: _Asked,
        context: Context,
        use: ToolUse,
        inbound: tuple[Inbound, ...],
        history: History | None,
        reply: TurnReply | None,
    ) -> TurnRequest:
        """What a pass is to do."""
        agent, tools = asked.agent, use.open
        settings, turn, item = agent.spec.generate, asked.firing.turn, asked.item
        wanted = agent.remembers(ends=not asked.keep) or self.sender.feeds_cache(agent)
        sampling, shape = None, Shape()
        if settings is not None:
            if not isinstance(agent.model, Delegate):
                shape = shape_of(settings, agent.model)
            if tools:
                shape = calling_shape(settings, agent.model, tools, answers=not use.must_call)
            sampling = sampling_of(settings, agent.model, turn=turn, item=item or 0)
        return TurnRequest(
            ids=context.ids if reply is None else reply.ids,
            inbound=inbound,
            history=history,
            sampling=sampling,
            grammar=shape.grammar,
            choices=shape.choices,
            reply=reply,
            keep_state=wanted or bool(tools),
            capture=self.sender.captures(agent) if wanted else (),
            snapshots=snapshots_of(context, agent.spec.snapshots, settings),
            owner=agent.name,
            limit_s=agent.spec.timeout,
            turn=turn,
            item=item,
        )

    async def _outcome(
        self, agent: AgentRun, request: TurnRequest, place: Place, reply: TurnReply | None
    ) -> TurnOutcome:
        if isinstance(agent.model, Delegate):
            told, end = self.recorder.tell_at_once(place, reply)
            outcome = await agent.engine.turn(request, told)
            end()
            return outcome

        def tell(event: TurnEvent) -> None:
            self.recorder.tell(place, event, reply)

        engine, limit = agent.engine, agent.spec.idle_timeout
        with self.recorder.telemetry.chat(agent.model.ref, request, place.item) as on_outcome:
            if limit is None:
                outcome = await engine.turn(request, tell)
            else:
                # A turn that waits for a device of this process is not idle: its first event says
                # that it began.
                begun = not isinstance(computing(engine), LocalEngine)
                outcome = await unless_idle(
                    agent.name, limit, lambda heard: engine.turn(request, heard), tell, begun=begun
                )
            on_outcome(outcome)
        return outcome

    def _prepare(self, asked: _Asked) -> Prepared:
        agent, firing, again = asked.agent, asked.firing, asked.again
        inputs = self.others.get(agent.name, self.inputs)
        variables = {"inputs": dict(inputs), "turn": firing.turn, **asked.extra}
        system = None if agent.spec.system is None else render(agent.spec.system, variables)
        inbound = [
            self._inbound(agent, number, again or number in firing.fresh) for number in firing.inbox
        ]
        told = {number: agent.held[number].told for number in firing.inbox}
        builder = agent.model.context_builder
        if agent.spec.workflow is not None:
            return prepare_inputs(builder, agent.spec, inbound, variables, told)
        prepared = prepare_turn(
            builder,
            agent.spec.prompt,
            inbound,
            variables,
            system=system,
            earlier=None if again else agent.context,
            leading=self.plan.leading.get(agent.name, ()),
            told=told,
        )
        require_room(agent, prepared.context)
        return prepared

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
            most_inexact=edge.max_inexact,
        )
