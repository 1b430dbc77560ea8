"""What a workflow loads, finds and plans before it runs, each once."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from types import MappingProxyType

import anyio.to_thread

from unspoken.agents.bridge_cache import BridgeCache
from unspoken.agents.delegates.model import Delegate
from unspoken.agents.engines.base import Engine, Sampling, TurnRequest
from unspoken.agents.engines.pool.pool import Pool
from unspoken.agents.engines.teams import ending_team
from unspoken.agents.loading import Progress, Templated, load_models, step_of
from unspoken.agents.models.base import AgentModel
from unspoken.agents.models.model import LocalModel
from unspoken.agents.planning.bridges import FindBridge
from unspoken.agents.planning.finetunes import stored_profile
from unspoken.agents.planning.memory import MemoryCheck
from unspoken.agents.planning.plan import Plan
from unspoken.agents.planning.planner import plan_workflow
from unspoken.agents.shapes.calls import call_problems
from unspoken.agents.shapes.shape import shape_problems
from unspoken.agents.spec.graph import validate
from unspoken.agents.spec.loader import LoadedWorkflow
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.agents.tools.toolbox import Toolbox
from unspoken.channels.base import Channel
from unspoken.channels.errors import ChannelError, ModelSupportError, WorkflowError
from unspoken.channels.finetunes.profile import Profile
from unspoken.channels.projected import Bridge
from unspoken.channels.storage.forks import ForkLock

_NONE: Mapping[str, "Preparation"] = MappingProxyType({})


class _Abandoned(BaseException):
    """Nobody waits for a load or a fit any more; raised in it where it next tells of its progress.

    No `Exception`: nothing on the way may take it for a model that cannot be loaded.
    """


@dataclass(frozen=True, slots=True)
class _Planned:
    """A plan, and all that it depends on."""

    spec: WorkflowSpec
    models: Mapping[str, AgentModel]
    plan: Plan

    def serves(self, spec: WorkflowSpec, models: Mapping[str, AgentModel]) -> bool:
        """Whether it is the plan of this workflow on these models."""
        return spec is self.spec and all(
            model is self.models.get(name) for name, model in models.items()
        )


@dataclass(slots=True)
class _Stores:
    """The stores of bridges and profiles, and whether a plan asked for anything in them."""

    bridges: FindBridge
    asked: bool = False

    def find_bridge(self, sharer: AgentModel, receiver: AgentModel) -> Bridge | None:
        """The bridge between two models."""
        self.asked = True
        return self.bridges(sharer, receiver)

    def find_profile(self, sharer: AgentModel, receiver: AgentModel) -> Profile | None:
        """The profile of two fine-tunes of one base."""
        self.asked = True
        return stored_profile(sharer, receiver)


class Preparation:
    """The models, bridges, channel objects and plan of one workflow.

    Args:
        models: Model objects by name; the others are loaded by reference.
        bridge_folders: Where bridges are looked for after the user's store.
        source: The workflow's file, where there is one; errors then name its lines.
        trust_bridges: Whether audits made on other machines are believed.

    Attributes:
        models: The models at hand, by name.
        given: Those of them that were given as objects; workflows inside take them by name too.
        bridge_cache: The bridges that were found or fitted.
        bridges: Bridge objects that were connected, by edge.
        custom: Channels of the workflow's own classes, by edge.
        toolbox: The tools of its agents; those that a file names may not run unless it is said.
    """

    def __init__(
        self,
        models: dict[str, AgentModel],
        bridge_folders: Sequence[str | Path],
        source: LoadedWorkflow | None,
        *,
        trust_bridges: bool = False,
    ) -> None:
        self.models, self.given, self._source = models, dict(models), source
        self._folders = [Path(folder) for folder in bridge_folders]
        self.bridge_cache = BridgeCache(self._folders, trust=trust_bridges)
        self.bridges: dict[int, Bridge] = {}
        self.custom: dict[int, Channel] = {}
        folder = None if source is None else Path(source.file).parent
        self.toolbox = Toolbox(folder, allowed=source is None)
        self._nested: dict[str, Preparation] = {}
        self._bases: dict[tuple[object, ...], LocalModel] = {}
        self._templated = Templated()
        self._valid: WorkflowSpec | None = None
        self._planned: _Planned | None = None
        self._flows: dict[str, Delegate] = {}
        self._lock = ForkLock()

    @property
    def file(self) -> str:
        """The workflow's file; empty without."""
        return "" if self._source is None else str(Path(self._source.file).absolute())

    def with_tools(
        self, toolbox: Toolbox, nested: Mapping[str, "Preparation"] = _NONE
    ) -> "Preparation":
        """The same with other tools: those of a run, whose servers are there.

        Args:
            toolbox: The tools of its agents.
            nested: The preparations of agents that are workflows, with theirs.
        """
        same = all(self._nested.get(name) is one for name, one in nested.items())
        if toolbox is self.toolbox and same:
            return self
        other = copy(self)
        other.toolbox, other._nested = toolbox, {**self._nested, **nested}
        return other

    def nested(self, agent: str, workflow: WorkflowSpec) -> "Preparation":
        """That of an agent which is a workflow; made where nobody gave one."""
        if agent not in self._nested:
            source = None if self._source is None else self._source.nested.get(agent)
            folders = self._folders if source is None else [Path(source.file).parent / "bridges"]
            trust = workflow.bridges == "trust"
            made = Preparation(dict(self.given), folders, source, trust_bridges=trust)
            if source is None:  # it stands in the same file
                made.toolbox = Toolbox(self.toolbox.folder)
            made.given, made.toolbox.allowed = self.given, self.toolbox.allowed
            self._nested.setdefault(agent, made)  # another run may have made one meanwhile
        return self._nested[agent]

    def nest(self, agent: str, preparation: "Preparation") -> None:
        """Let an agent that is a workflow have its own models and bridges."""
        self._nested[agent] = preparation

    def connected(self, number: int, custom: Channel | None, bridge: Bridge | None) -> None:
        """Take in the objects that an edge was connected with."""
        if custom is not None:
            self.custom[number] = custom
        if bridge is not None:
            self.bridges[number] = bridge

    def by_agent(self, spec: WorkflowSpec) -> dict[str, AgentModel]:
        """The model of every agent, with its agent's arguments for the chat template.

        Raises:
            ModelSupportError: An agent gives arguments to a model that takes none.
            InputError: A tool that is not there, or may not run.
        """
        templated = self._templated
        flows = {
            name: self._flow(name, agent.workflow)
            for name, agent in spec.agents.items()
            if agent.workflow is not None
        }
        return {
            name: templated.today(
                templated.calling(
                    templated.of(self.models[agent.model], agent.template),
                    self.toolbox.of(agent.tools),
                )
            )
            if name not in flows
            else flows[name]
            for name, agent in spec.agents.items()
        }

    def _flow(self, name: str, workflow: WorkflowSpec) -> Delegate:
        if name not in self._flows:
            self._flows[name] = Delegate("a workflow", workflow.name)
        return self._flows[name]

    def load(self, spec: WorkflowSpec, progress: Progress | None = None) -> None:
        """Load every model that is not at hand.

        Raises:
            WorkflowError: The workflow is not valid.
            InputError: It has tools that may not run.
            ModelReferenceError: A model that is not available.
        """
        if spec is not self._valid:
            problems = validate(spec)
            if problems:
                raise WorkflowError(problems)
            self._valid = spec
        self.toolbox.require_allowed(ref for agent in spec.agents.values() for ref in agent.tools)
        with self._lock:  # two first runs at once load each model once
            load_models(spec, self.models, self._source, progress, self._bases)
        for name, agent in spec.agents.items():
            if agent.workflow is not None:
                nested = self.nested(name, agent.workflow)
                nested._bases = self._bases  # what both refer to is loaded once
                nested.load(agent.workflow, progress)

    def plan(self, spec: WorkflowSpec, inputs: Mapping[str, object] | None = None) -> Plan:
        """A plan for these inputs, or for none.

        Raises:
            WorkflowError: An edge that must not fall back cannot be served, or an answer's shape
                that its agent's model cannot keep to.
        """
        models, stores = self.by_agent(spec), _Stores(self.bridge_cache.find)
        if inputs is None and self._planned is not None and self._planned.serves(spec, models):
            return self._planned.plan
        try:
            problems = list(shape_problems(spec, models))
            problems += call_problems(spec, models, self.toolbox)
            if problems:
                raise WorkflowError(problems)
            plan = plan_workflow(
                spec,
                models,
                inputs,
                find_bridge=stores.find_bridge,
                bridges=self.bridges,
                find_profile=stores.find_profile,
                custom=self.custom,
            )
        except WorkflowError as error:
            if self._source is None:
                raise
            problems = [self._source.placed(problem) for problem in error.problems]
            raise WorkflowError(problems) from None
        inner = {
            name: self.nested(name, agent.workflow).plan(agent.workflow)
            for name, agent in spec.agents.items()
            if agent.workflow is not None
        }
        plan = replace(plan, inner=inner) if inner else plan
        if inputs is None and not (inner or stores.asked or self.custom):
            self._planned = _Planned(spec, models, plan)
        return plan

    def check_memory(
        self,
        spec: WorkflowSpec,
        plan: Plan,
        inputs: Mapping[str, object],
        pool: Pool,
        models: Mapping[str, AgentModel],
        engines: Mapping[str, Engine],
    ) -> None:
        """Refuse a workflow with a turn that can never have its memory, as far as that is known.

        Args:
            spec: A valid workflow.
            plan: Its plan.
            inputs: Input values, all or some.
            pool: The memory for states.
            models: The model of every agent.
            engines: What computes the turns of each agent; agents of one model have one.

        Raises:
            WorkflowError: Every such agent, with the figures.
        """

        facts_of = {engine: engine.facts for engine in set(engines.values())}

        def takes(agent: str, tokens: int, led: int, keep: bool) -> int:
            settings = spec.agents[agent].generate
            sampling = None if settings is None else Sampling(max_tokens=settings.max_new_tokens)
            request = TurnRequest(ids=(0,) * tokens, sampling=sampling, keep_state=keep)
            facts = facts_of[engines[agent]]
            row = facts.geometry.bytes_per_token(facts.dtype.itemsize)
            return engines[agent].footprint(request).peak + led * row

        check = MemoryCheck(
            spec=spec, models=models, plan=plan, inputs=inputs, takes=takes, shares=pool.retain
        )
        limits = {name: pool.budget.at_most(facts_of[one].device) for name, one in engines.items()}
        problems = check.never_fit(limits)
        found = [one if self._source is None else self._source.placed(one) for one in problems]
        if found:
            raise WorkflowError(found)

    def ready(self, spec: WorkflowSpec, progress: Progress | None = None) -> Plan:
        """The plan of the next run; with ``bridges: fit``, what it lacks is fitted first.

        Where an edge asked for a profile or a bridge, it is made anew for each run, so that it
        agrees with the plan that a person is shown now: one may have come since the last run.

        Two models that cannot be bridged leave their edge to text, or to an error where it must not
        fall back.

        Raises:
            WorkflowError: As `load` and `plan`.
        """
        self.load(spec, progress)
        with self._lock:
            return self._fitted(spec, progress)

    async def ready_soon(self, spec: WorkflowSpec) -> Plan:
        """`ready`, on another thread.

        A cancel does not wait for that thread. What it loads ends where it next tells of its
        progress; the models that are whole by then are kept for the next run.
        """
        abandoned = Event()

        def go_on(name: str, stage: str, fraction: float) -> None:
            if abandoned.is_set():
                raise _Abandoned

        try:
            return await anyio.to_thread.run_sync(
                ending_team(self.ready), spec, go_on, abandon_on_cancel=True
            )
        except BaseException:
            abandoned.set()
            raise

    def _fitted(self, spec: WorkflowSpec, progress: Progress | None) -> Plan:
        for name, agent in spec.agents.items():
            if agent.workflow is not None:
                self.nested(name, agent.workflow).ready(agent.workflow, progress)
        plan = self.plan(spec)
        models = self.by_agent(spec) if plan.unfitted else {}
        for number in plan.unfitted:
            edge = spec.edges[number]
            step = step_of(progress, f"{edge.from_} -> {edge.to}")
            with suppress(ChannelError, ModelSupportError):  # the plan says why
                self.bridge_cache.fit(models[edge.from_], models[edge.to], step)
        return self.plan(spec) if plan.unfitted else plan
