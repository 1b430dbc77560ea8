"""One run of a workflow: inputs checked, models and plan ready, then the scheduler."""

from collections.abc import Mapping

from unspoken.agents.engines.pool.budget import Budget
from unspoken.agents.engines.pool.pool import Pool
from unspoken.agents.engines.worker import Workers, at_once
from unspoken.agents.loading import engines_for
from unspoken.agents.planning.plan import Plan
from unspoken.agents.preparation import Preparation
from unspoken.agents.runtime.failures import within
from unspoken.agents.runtime.inbox import check_received, require_messages
from unspoken.agents.runtime.report import RunReport
from unspoken.agents.runtime.scheduler import Scheduler
from unspoken.agents.runtime.states import StateStore
from unspoken.agents.runtime.stream import EventBuffer
from unspoken.agents.session import Session
from unspoken.agents.spec.inputs import check_inputs
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.message import Message


class Execution:
    """The runs of a workflow.

    Args:
        preparation: Its models, bridges and plan.

    Attributes:
        workers: The devices' workers, which all runs share.
    """

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation
        self.workers = Workers()

    def plan(self, spec: WorkflowSpec, inputs: Mapping[str, object] | None) -> Plan:
        """A plan for these inputs, or for none; with inputs, one whose turns get their memory.

        Raises:
            WorkflowError: An edge that must not fall back cannot be served, or a turn never fits.
        """
        plan = self._preparation.plan(spec, inputs)
        if inputs is not None:
            models, pool = self._preparation.by_agent(spec), Pool(Budget(spec.memory))
            engines = engines_for(models, StateStore(pool), self.workers)
            self._preparation.check_memory(spec, plan, inputs, pool, engines)
        return plan

    async def run(
        self,
        spec: WorkflowSpec,
        received: Mapping[str, Message],
        session: object,
        inputs: Mapping[str, object],
        events: EventBuffer | None = None,
    ) -> tuple[Scheduler, RunReport]:
        """Check the inputs, load, plan and run, all within the workflow's timeout.

        Args:
            spec: The workflow.
            received: Messages of agents that spoke elsewhere, by agent.
            session: Whose states are used; None for a memory of the run's own. What is no session
                is an input of that name.
            inputs: The workflow's inputs.
            events: Where events go; None for nowhere.

        Raises:
            UnspokenError: As `unspoken.agents.Workflow.run`.
        """
        require_messages(spec, received)
        if session is not None and not isinstance(session, Session):
            inputs, session = {**inputs, "session": session}, None
        known = check_inputs(spec, inputs)
        if session is not None:
            with session.running() as pool:
                return await self._run(spec, received, StateStore(pool), known, events)
        pool = Pool(Budget(spec.memory))
        try:
            return await self._run(spec, received, StateStore(pool), known, events)
        finally:
            pool.close()

    async def _run(
        self,
        spec: WorkflowSpec,
        received: Mapping[str, Message],
        states: StateStore,
        inputs: Mapping[str, object],
        events: EventBuffer | None,
    ) -> tuple[Scheduler, RunReport]:
        when_room = at_once if events is None else events.when_room
        with within(spec.timeout) as limit:
            plan = await self._preparation.ready_soon(spec)
            models = self._preparation.by_agent(spec)
            check_received(spec, models, received)
            engines = engines_for(models, states, self.workers, when_room)
            self._preparation.check_memory(spec, plan, inputs, states.pool, engines)
            scheduler = Scheduler(
                spec,
                models=models,
                engines=engines,
                states=states,
                plan=plan,
                inputs=inputs,
                emit=(lambda event: None) if events is None else events.put,
                received=received,
                when_room=when_room,
            )
            limit.partial = scheduler.partial
            return scheduler, await scheduler.run()
