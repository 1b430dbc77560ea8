"""One run of a workflow: inputs checked, models and plan ready, then the scheduler."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from functools import partial

from unspoken.agents.costs.calibrate import calibrated, measurable
from unspoken.agents.costs.forecasts import Forecaster
from unspoken.agents.costs.store import CostStore
from unspoken.agents.engines.event_loop import run_anywhere
from unspoken.agents.engines.pool.budget import Budget
from unspoken.agents.engines.pool.pool import Pool
from unspoken.agents.engines.worker import Workers, at_once
from unspoken.agents.loading import engines_for
from unspoken.agents.models.base import AgentModel
from unspoken.agents.models.model import LocalModel
from unspoken.agents.planning.forecast import Forecast
from unspoken.agents.planning.plan import Plan
from unspoken.agents.preparation import Preparation
from unspoken.agents.runs.kept import NOT_KEPT, Keeping, KeptRun, as_stored
from unspoken.agents.runs.offload import elsewhere
from unspoken.agents.runtime.events import RunFinished, RunPaused, stamped
from unspoken.agents.runtime.failures import RunLimit, within
from unspoken.agents.runtime.inbox import check_received, require_messages
from unspoken.agents.runtime.people import OnQuestion
from unspoken.agents.runtime.report import RunReport
from unspoken.agents.runtime.scheduler import Scheduler, nobody
from unspoken.agents.runtime.states import StateStore
from unspoken.agents.runtime.stream import EventBuffer
from unspoken.agents.session import Session
from unspoken.agents.sessions.talk import Talk, require_session
from unspoken.agents.spec.graph import asks_people
from unspoken.agents.spec.inputs import check_inputs
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.agents.starting import Around, ground_of, scheduler_of, whole_origin
from unspoken.channels.errors import RunWaiting
from unspoken.channels.message import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a workflow is run.

    Attributes:
        session: Whose states are used and conversations gone on with; None for a memory of the
            run's own.
        keeping: Where and how the run is kept.
        on_question: Answers what it asks people while it goes on.
        others: Inputs that some agents read in place of the run's, by agent.
        on_message: Told of every message that is sent, with the number of its edge.
    """

    session: Session | None = None
    keeping: Keeping = NOT_KEPT
    on_question: OnQuestion | None = None
    others: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    on_message: Callable[[int, Message], object] | None = None

    def is_kept(self, spec: WorkflowSpec) -> bool:
        """Whether the run is kept: where it is to be, or where somebody has to answer."""
        return self.keeping.asked or asks_people(spec)


class Execution:
    """The runs of a workflow.

    Args:
        preparation: Its models, bridges and plan.

    Attributes:
        workers: The devices' workers, which all runs share.
        costs: Where it is kept how fast models are, and how much agents write; None for the
            user's own.
    """

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation
        self.workers = Workers()
        self.costs: CostStore | None = None

    def plan(self, spec: WorkflowSpec, inputs: Mapping[str, object] | None) -> Plan:
        """A plan for these inputs, or for none; with inputs, one whose turns get their memory.

        Raises:
            WorkflowError: An edge that must not fall back cannot be served, or a turn never fits.
        """
        ready = self.listed(spec)
        plan = ready.plan(spec, inputs)
        if inputs is not None:
            models, pool = ready.by_agent(spec), Pool(Budget(spec.memory))
            engines = engines_for(models, StateStore(pool), self.workers)
            ready.check_memory(spec, plan, inputs, pool, models, engines)
            if spec.inputs.keys() <= inputs.keys():
                plan = replace(plan, forecast=self._forecast(spec, models, plan, inputs))
        return plan

    def calibrate(self, spec: WorkflowSpec) -> None:
        """Measure every model of a workflow that computes here, and keep how fast it is.

        Raises:
            OSError: The store cannot be written.
        """
        ready, store = self.listed(spec), self.costs or CostStore()
        plan, models = ready.plan(spec), ready.by_agent(spec)
        for model, bridges in measurable(models, plan):
            store.keep_pace(model, calibrated(model, bridges))

    def _forecast(
        self,
        spec: WorkflowSpec,
        models: Mapping[str, AgentModel],
        plan: Plan,
        inputs: Mapping[str, object],
    ) -> Forecast | None:
        """What a run is expected to take; None where a model of this process was not measured."""
        store = self.costs or CostStore()
        paces = {}
        for name, model in models.items():
            pace = store.pace(model) if isinstance(model, LocalModel) else None
            if pace is not None:
                paces[name] = pace
            elif isinstance(model, LocalModel):
                return None
        if not paces:
            return None
        forecaster = Forecaster(
            spec=spec,
            models=models,
            plan=plan,
            inputs=inputs,
            paces=paces,
            lengths=store.lengths(spec),
        )
        return forecaster.forecast()

    def listed(self, spec: WorkflowSpec) -> Preparation:
        """The preparation, with the tools of the workflow's servers.

        They are started, asked what they have, and stopped.

        Raises:
            InputError: They may not run, or one of them does not work.
        """

        async def ask() -> Preparation:
            async with _opened(self._preparation, spec) as opened:
                return opened

        return run_anywhere(ask) if starts_servers(spec) else self._preparation

    async def run(
        self,
        spec: WorkflowSpec,
        received: Mapping[str, Message],
        inputs: Mapping[str, object],
        how: How,
        events: EventBuffer | None = None,
    ) -> tuple[Scheduler, RunReport]:
        """Check the inputs, load, plan and run, all within the workflow's timeout.

        Args:
            spec: The workflow.
            received: Messages of agents that spoke elsewhere, by agent.
            inputs: The workflow's inputs.
            how: In which session, where it is kept, and who answers questions.
            events: Where events go; None for nowhere.

        Raises:
            UnspokenError: As `unspoken.agents.Workflow.run`.
        """
        require_messages(spec, received)
        if how.session is None:
            require_session(spec)
        kept = await elsewhere(KeptRun, how.keeping) if how.is_kept(spec) else None
        error: BaseException | None = None
        try:
            known = check_inputs(spec, inputs if kept is None else kept.inputs(inputs))
            known = known if kept is None else as_stored(known)
            run = partial(self._run, spec, received, known, how, kept, events)
            if how.session is not None:
                run_id = "" if kept is None else kept.id
                with how.session.running() as pool:
                    async with how.session.talk(spec, run_id) as talk:
                        return await run(pool, talk)
            with closing(Pool(Budget(spec.memory))) as pool:
                return await run(pool, None)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if kept is not None:
                await elsewhere(kept.end, error)

    async def _run(
        self,
        spec: WorkflowSpec,
        received: Mapping[str, Message],
        inputs: Mapping[str, object],
        how: How,
        kept: KeptRun | None,
        events: EventBuffer | None,
        pool: Pool,
        talk: Talk | None,
    ) -> tuple[Scheduler, RunReport]:
        given = spec, received, inputs, how, kept, events, pool
        with within(spec.timeout) as limit:
            async with _opened(self._preparation, spec) as ready:
                return await self._scheduled(*given, talk, ready, limit)

    async def _scheduled(
        self,
        spec: WorkflowSpec,
        received: Mapping[str, Message],
        inputs: Mapping[str, object],
        how: How,
        kept: KeptRun | None,
        events: EventBuffer | None,
        pool: Pool,
        talk: Talk | None,
        ready: Preparation,
        limit: RunLimit,
    ) -> tuple[Scheduler, RunReport]:
        plan = await ready.ready_soon(spec)
        models = ready.by_agent(spec)
        check_received(spec, models, received)
        around = Around(
            workers=self.workers,
            pool=pool,
            when_room=at_once if events is None else events.when_room,
            emit=nobody if events is None else events.put,
            run_id=None if kept is None else kept.id,
            on_question=how.on_question,
        )
        ground = ground_of(ready, spec, plan, inputs, around, models)
        earlier = {}
        if talk is not None:
            begun = None if kept is None or kept.stored is None else kept.stored.origin
            given = ground.models, ground.engines, inputs, ground.states
            earlier = await talk.begin(*given, begun)
        if kept is not None:
            origin = whole_origin(ready, spec, plan, inputs, received)
            if talk is not None:
                origin = replace(origin, session=talk.name, conversations=talk.digests)
            around = replace(around, book=await elsewhere(kept.open, origin))
        scheduler = scheduler_of(
            ready,
            spec,
            plan,
            inputs,
            around,
            ground,
            received=received,
            others={name: check_inputs(spec, given) for name, given in how.others.items()},
            on_message=how.on_message,
            earlier=earlier,
            leave=None if talk is None else talk.end,
        )
        limit.partial = scheduler.partial
        return scheduler, await _ended(scheduler, kept)


def starts_servers(spec: WorkflowSpec) -> bool:
    """Whether agents have tools of servers, in workflows inside of it too."""
    inner = (agent.workflow for agent in spec.agents.values())
    return bool(spec.servers) or any(one is not None and starts_servers(one) for one in inner)


@asynccontextmanager
async def _opened(preparation: Preparation, spec: WorkflowSpec) -> AsyncIterator[Preparation]:
    """The same with the tools of a workflow's servers, which live as long as this.

    Those of a workflow inside of it are there once, for all of its runs: an item of ``for_each``
    starts none of its own.

    Raises:
        InputError: They may not run, or one of them does not work.
    """
    async with AsyncExitStack() as stack:
        toolbox = await stack.enter_async_context(preparation.toolbox.opened(spec.servers))
        nested = {}
        for name, agent in spec.agents.items():
            if agent.workflow is not None and starts_servers(agent.workflow):
                inner = _opened(preparation.nested(name, agent.workflow), agent.workflow)
                nested[name] = await stack.enter_async_context(inner)
        yield preparation.with_tools(toolbox, nested)


async def _ended(scheduler: Scheduler, kept: KeptRun | None) -> RunReport:
    """Run to the end, and keep how it ended."""
    try:
        report = await scheduler.run()
    except RunWaiting as waiting:
        scheduler.keep(stamped(RunPaused(waiting.questions), waiting.run_id))
        raise
    if kept is not None:
        kept.outputs = scheduler.outputs()
        scheduler.keep(stamped(RunFinished(kept.outputs, report), report.run_id))
    return report
