"""The scheduler of a run, with the engines that run the workflows inside of it."""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

from unspoken.agents.delegates.engine import DelegateEngine
from unspoken.agents.delegates.model import Delegate
from unspoken.agents.engines.base import Engine, TurnRequest
from unspoken.agents.engines.pool.pool import Pool
from unspoken.agents.engines.worker import WhenRoom, Workers
from unspoken.agents.loading import engines_for
from unspoken.agents.models.base import AgentModel
from unspoken.agents.planning.plan import Plan
from unspoken.agents.preparation import Preparation
from unspoken.agents.runs.engine import kept_engines
from unspoken.agents.runs.journal import Journal
from unspoken.agents.runs.kept import as_stored
from unspoken.agents.runs.origin import origin_of
from unspoken.agents.runs.records import Origin
from unspoken.agents.runtime.events import Event, inside
from unspoken.agents.runtime.failures import InnerError, within
from unspoken.agents.runtime.people import OnQuestion, Waiting
from unspoken.agents.runtime.scheduler import Scheduler
from unspoken.agents.runtime.states import StateStore
from unspoken.agents.sessions.records import Earlier
from unspoken.agents.spec.inputs import check_inputs
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import RunError, RunWaiting, StoreError
from unspoken.channels.message import Message

_NOTHING: Mapping[str, Message] = MappingProxyType({})
_AS_GIVEN: Mapping[str, Mapping[str, object]] = MappingProxyType({})
_NO_EARLIER: Mapping[str, Earlier] = MappingProxyType({})

Leave = Callable[[Mapping[str, Engine], Mapping[str, Earlier]], Awaitable[None]]
"""Takes what agents leave for the next run of a session, with the engines that computed it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What a run shares with the workflows inside of it.

    Attributes:
        workers: The devices' workers.
        pool: The memory for states.
        when_room: Asked before each turn, which waits until events have room.
        emit: Called with every event.
        run_id: The run's id; None for a new one.
        book: What keeps the run, where it is kept.
        on_question: Answers what people are asked, while the run goes on.
        scope: What stands before the names of agents, in a workflow inside of another.
    """

    workers: Workers
    pool: Pool
    when_room: WhenRoom
    emit: Callable[[Event], None]
    run_id: str | None = None
    book: Journal | None = None
    on_question: OnQuestion | None = None
    scope: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What the turns of a run are computed with.

    Attributes:
        models: The model of every agent.
        states: The states of the run.
        engines: What computes each agent's turns.
    """

    models: Mapping[str, AgentModel]
    states: StateStore
    engines: Mapping[str, Engine]


def ground_of(
    preparation: Preparation,
    spec: WorkflowSpec,
    plan: Plan,
    inputs: Mapping[str, object],
    around: Around,
    models: Mapping[str, AgentModel],
) -> Ground:
    """What a run that is ready computes with.

    Args:
        preparation: The workflow's models and bridges.
        spec: The workflow.
        plan: Its plan.
        inputs: Checked input values.
        around: What is around it.
        models: The model of every agent.

    Raises:
        WorkflowError: A turn that can never have its memory.
    """
    states = StateStore(around.pool)
    engines = engines_for(models, states, around.workers, around.when_room)
    preparation.check_memory(spec, plan, inputs, states.pool, models, engines)
    return Ground(models=models, states=states, engines=engines)


def scheduler_of(
    preparation: Preparation,
    spec: WorkflowSpec,
    plan: Plan,
    inputs: Mapping[str, object],
    around: Around,
    ground: Ground,
    *,
    received: Mapping[str, Message] = _NOTHING,
    others: Mapping[str, Mapping[str, object]] = _AS_GIVEN,
    on_message: Callable[[int, Message], object] | None = None,
    earlier: Mapping[str, Earlier] = _NO_EARLIER,
    leave: Leave | None = None,
) -> Scheduler:
    """The scheduler of a run that is ready.

    Args:
        preparation: The workflow's models and bridges.
        spec: The workflow.
        plan: Its plan.
        inputs: Checked input values.
        around: What is around it.
        ground: What its turns are computed with.
        received: Messages of agents that spoke elsewhere, by agent.
        others: Inputs that some agents read in place of the run's, by agent.
        on_message: Told of every message that is sent.
        earlier: What agents go on from that had turns in a session before.
        leave: Takes what they leave, once the run has ended well.
    """
    book, toolbox, models = around.book, preparation.toolbox, ground.models
    flows: dict[str, FlowEngine] = {}
    for name, agent in spec.agents.items():
        model = models[name]
        if agent.workflow is not None and isinstance(model, Delegate):
            nested = preparation.nested(name, agent.workflow)
            flows[name] = FlowEngine(model, nested, agent.workflow, plan.inner[name], around)
    engines: Mapping[str, Engine] = {**ground.engines, **flows}
    if book is not None:
        engines, toolbox = kept_engines(engines, book), toolbox.of_run(book)
    scheduler = Scheduler(
        spec,
        models=models,
        engines=engines,
        states=ground.states,
        plan=plan,
        inputs=inputs,
        emit=around.emit,
        received=received,
        when_room=around.when_room,
        run_id=around.run_id,
        book=book,
        on_question=around.on_question,
        toolbox=toolbox,
        others=others,
        on_message=on_message,
        scope=around.scope,
        earlier=earlier,
        leave=None if leave is None else partial(leave, engines),
    )
    for flow in flows.values():
        flow.outer = scheduler
    return scheduler


class FlowEngine(DelegateEngine):
    """Takes the turns of an agent that is a workflow: each is a run of it inside of this run.

    Args:
        model: What stands in the model's place.
        preparation: The workflow's models and bridges.
        spec: The workflow.
        plan: Its plan, which the outer run's has made.
        around: What is around the outer run.

    Attributes:
        outer: The outer run.
    """

    keeps_itself = True
    outer: Scheduler

    def __init__(
        self,
        model: Delegate,
        preparation: Preparation,
        spec: WorkflowSpec,
        plan: Plan,
        around: Around,
    ) -> None:
        super().__init__(model)
        self._preparation, self._spec, self._plan = preparation, spec, plan
        self._around = around

    async def answer(self, request: TurnRequest, words: str) -> str:
        """Run the workflow on its inputs, in JSON: the words of its output, or JSON of several.

        Raises:
            InnerError: It failed.
            Waiting: A person is asked something in it.
        """
        item = "" if request.item is None else f".{request.item}"
        place = f"{request.owner}.{request.turn}{item}"
        try:
            outputs = await self._run(place, json.loads(words))
        except RunWaiting as waiting:
            self.outer.people.open.extend(waiting.questions)
            raise Waiting from None
        except StoreError:
            raise
        except RunError as error:
            raise InnerError(
                error.found, edge=error.edge, expected=error.expected, fix=error.fix
            ) from error
        if len(outputs) == 1:
            return next(iter(outputs.values()))
        return json.dumps(outputs, ensure_ascii=False)

    async def _run(self, place: str, given: Mapping[str, object]) -> dict[str, str]:
        plan, around, outer = self._plan, self._around, self.outer
        hidden = self._spec.private or outer.spec.private
        spec = self._spec.model_copy(update={"private": hidden})
        inputs = check_inputs(spec, given)
        inner = replace(
            around,
            emit=lambda event: outer.emit(inside(event, place)),
            run_id=outer.run_id,
            scope=f"{around.scope}{place}/",
        )
        if around.book is not None:
            inputs = as_stored(inputs)
            inner = replace(inner, book=await around.book.opened_inside(place))
        with within(spec.timeout) as limit:
            models = self._preparation.by_agent(spec)
            ground = ground_of(self._preparation, spec, plan, inputs, inner, models)
            scheduler = scheduler_of(self._preparation, spec, plan, inputs, inner, ground)
            limit.partial = scheduler.partial
            try:
                await scheduler.run()
            finally:
                outer.take_in(place, scheduler)
        return scheduler.outputs()


def whole_origin(
    preparation: Preparation,
    spec: WorkflowSpec,
    plan: Plan,
    inputs: Mapping[str, object],
    received: Mapping[str, Message] = _NOTHING,
) -> Origin:
    """What a run is begun with, the workflows inside of it included."""
    models = preparation.by_agent(spec)
    origin = origin_of(spec, models, inputs, received, plan, preparation.file)
    for name, agent in spec.agents.items():
        if agent.workflow is None:
            continue
        nested = preparation.nested(name, agent.workflow)
        inner = whole_origin(nested, agent.workflow, plan.inner[name], {})
        added = {f"{name}/{key}": value for key, value in inner.models.items()}
        edges = {f"{name}/{key}": value for key, value in inner.edges.items()}
        origin = replace(origin, models={**origin.models, **added}, edges={**origin.edges, **edges})
    return origin
