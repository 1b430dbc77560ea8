"""A workflow: load, plan, run, stream."""

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unspoken.agents.agent import Agent
from unspoken.agents.builder import (
    OURS,
    check_ends,
    checked_spec,
    declare,
    edge_options,
    given_inputs,
    inferred_inputs,
    name_of,
    require_models,
    require_nameable,
    with_edge,
)
from unspoken.agents.costs.store import CostStore
from unspoken.agents.execution import Execution
from unspoken.agents.loading import Progress
from unspoken.agents.models.base import AgentModel
from unspoken.agents.planning.plan import Plan
from unspoken.agents.preparation import Preparation
from unspoken.agents.running import Runnable
from unspoken.agents.runtime.report import AgentResult, RunResult
from unspoken.agents.spec.edge import MAX_LOSS, MIN_RETENTION
from unspoken.agents.spec.graph import build_graph
from unspoken.agents.spec.inputs import check_inputs
from unspoken.agents.spec.loader import LoadedWorkflow, dumps, load_workflow
from unspoken.agents.spec.spec import InputSpec, WorkflowSpec
from unspoken.channels.base import Channel
from unspoken.channels.projected import ProjectedCacheChannel

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["AgentResult", "RunResult", "Workflow"]


class Workflow(Runnable):
    """Agents, the channels between them, and the models they run on.

    Args:
        name: What it is called.
        agents: Its agents.
        inputs: Its inputs, as a type name or an `InputSpec` each; without it every ``inputs.X`` of
            a template is one.
        outputs: Templates of its results; without any, the words of agents that nobody reads.
        models: Names for model objects and references; others are named after their reference.
        timeout: Most seconds a run may take, loading and fitting included.
        memory: Most bytes of states on each device, such as ``2GB``; None for half of what is free.
            In a session its own memory counts.
        private: Whether reports and kept events are without what agents read and write.
        description: What it does, for people.
        bridges: ``stored`` uses stored bridges that this machine measured, ``fit`` fits one where
            an edge has none, ``trust`` believes the audits of bridges from elsewhere.
        bridge_folders: Where bridges are looked for after the user's store; for a file, ``bridges``
            beside it.

    Raises:
        WorkflowError: Agents of equal names, or a setting that is not as it should be.
    """

    def __init__(
        self,
        name: str,
        agents: Sequence[Agent],
        *,
        inputs: Mapping[str, str | InputSpec] | None = None,
        outputs: Mapping[str, str] | None = None,
        models: Mapping[str, AgentModel | str] | None = None,
        timeout: float | None = None,
        memory: int | str | None = None,
        private: bool = False,
        description: str = "",
        bridges: Literal["stored", "fit", "trust"] = "stored",
        bridge_folders: Sequence[str | Path] = (),
    ) -> None:
        declared, objects = declare(agents, models or {})
        self.spec = checked_spec(
            {
                **declared,
                "name": name,
                "description": description,
                "inputs": dict(inputs) if inputs is not None else inferred_inputs(agents),
                "outputs": dict(outputs or {}),
                "timeout": timeout,
                "memory": memory,
                "private": private,
                "bridges": bridges,
            }
        )
        self._begin(objects, bridge_folders, None)
        for agent in agents:
            if agent.workflow is not None:
                self._preparation.nest(agent.name, agent.workflow._preparation)

    def _begin(
        self,
        models: dict[str, AgentModel],
        bridge_folders: Sequence[str | Path],
        source: LoadedWorkflow | None,
    ) -> None:
        trust = self.spec.bridges == "trust"
        self._preparation = Preparation(models, bridge_folders, source, trust_bridges=trust)
        self._execution = Execution(self._preparation)

    @classmethod
    def from_spec(
        cls,
        spec: WorkflowSpec,
        *,
        bridge_folders: Sequence[str | Path] = (),
        source: LoadedWorkflow | None = None,
        models: Mapping[str, AgentModel] | None = None,
        allow_tools: bool = False,
    ) -> "Workflow":
        """A workflow of a valid spec; its models are loaded when it first runs.

        Args:
            spec: The spec.
            bridge_folders: Where bridges are looked for after the user's store.
            source: The file that the spec was read from; errors then name its lines.
            models: Model objects by name, in place of what the spec refers to.
            allow_tools: Let the tools that a file names run.

        Raises:
            InputError: The spec has no model of such a name.
        """
        require_models(spec, models or {})
        flow = cls.__new__(cls)
        flow.spec = spec
        flow._begin(dict(models or {}), bridge_folders, source)
        flow._preparation.toolbox.allowed = allow_tools
        return flow

    @classmethod
    def from_yaml(
        cls,
        path: str | Path,
        *,
        models: Mapping[str, AgentModel] | None = None,
        allow_tools: bool = False,
    ) -> "Workflow":
        """Read a workflow file.

        Args:
            path: The file.
            models: Model objects to use under these names, in place of what the file refers to.
            allow_tools: Let its tools run, which are programs that it names.

        Raises:
            WorkflowError: Everything wrong with it, with line and column.
            InputError: The file has no model of such a name.
        """
        loaded, beside = load_workflow(path), [Path(path).parent / "bridges"]
        flow = cls.from_spec(loaded.spec, bridge_folders=beside, source=loaded, models=models)
        flow._preparation.toolbox.allowed = allow_tools
        return flow

    def to_yaml(self) -> str:
        """The workflow as a file's text; read again, it is the same.

        Raises:
            InputError: A model object that was made in memory has no reference to write, nor has a
                bridge object or a channel of a class of your own.
        """
        parts = [(self.spec, self._preparation)]
        for spec, ready in parts:  # it grows by the workflows inside
            require_nameable(spec, ready.models, ready.bridges, ready.custom)
            inner = ((name, agent.workflow) for name, agent in spec.agents.items())
            parts += [(one, ready.nested(name, one)) for name, one in inner if one is not None]
        return dumps(self.spec)

    def connect(
        self,
        sharer: Agent | str,
        receiver: Agent | str,
        channel: Channel | str = "auto",
        *,
        when: str | None = None,
        loop: bool = False,
        fallback: str = "text",
        min_retention: float = MIN_RETENTION,
        max_loss: float = MAX_LOSS,
        max_kl: float = 0.01,
        codec: str = "raw",
        thoughts: Literal["keep", "drop"] | None = None,
        ask: Literal["approve", "edit", "answer"] | None = None,
        **options: Any,
    ) -> "Workflow":
        """Add an edge; what can be checked of it is checked here.

        Args:
            sharer: Who publishes.
            receiver: Who reads.
            channel: A channel with its options, of the package's or of a class of your own, or the
                name of one.
            when: Expression; where it is false the edge sends a skip.
            loop: Whether its message starts the receiver again.
            fallback: ``text``, or ``error`` to refuse rather than fall back.
            min_retention: Least share of a message that a bridge's audit must show to be kept,
                0 to 1; 0 asks for nothing, nor that its sharer adds something.
            max_loss: Most that it may lose of the task's score, 0 to 1; 1 asks for nothing.
            max_kl: How far, by a profile of two fine-tunes, the receiver may be from its own
                reading, nats a token.
            codec: How the cache is kept until it is read: ``raw``, ``int8`` or ``int4``.
            thoughts: ``keep`` or ``drop``; None as the sharer says, else output goes without them.
            ask: What a person does with the message first: ``approve``, ``edit`` or ``answer``.
            options: Beside a channel's name, its options as the file calls them: ``share``,
                ``as_``, ``repair``, ``read_again``, ``max_inexact``, ``fuse``, ``recompute``.

        Returns:
            The workflow itself.

        Raises:
            WorkflowError: Unknown agents, an unknown channel or option.
            InputError: No channel, or a class of your own that lacks what a channel has.
            IdentityMismatch, GeometryMismatch: Both models are loaded, differ, and the edge does
                not fall back.
        """
        data: dict[str, Any] = {"from": name_of(sharer), "to": name_of(receiver)}
        data |= {"when": when, "loop": loop, "fallback": fallback, "min_retention": min_retention}
        data |= {"max_loss": max_loss, "max_kl": max_kl, "codec": codec}
        data |= {"thoughts": thoughts, "ask": ask}
        data |= (
            {"channel": channel, **options}
            if isinstance(channel, str)
            else edge_options(channel, options)
        )
        number, ready = len(self.spec.edges), self._preparation
        own = channel if isinstance(channel, Channel) and type(channel) not in OURS else None
        custom = ready.custom if own is None else {**ready.custom, number: own}
        spec = with_edge(self.spec, data, custom)
        build_graph(spec)
        check_ends(spec, channel, ready.models)
        bridge = channel.bridge if isinstance(channel, ProjectedCacheChannel) else None
        ready.connected(number, own, bridge)
        self.spec = spec
        return self

    @property
    def graph(self) -> "nx.MultiDiGraph[str]":
        """The graph: nodes are agents, edges channels."""
        return build_graph(self.spec)

    @property
    def models(self) -> Mapping[str, AgentModel]:
        """The models loaded so far, by name."""
        return dict(self._preparation.models)

    def load(self, progress: Progress | None = None) -> "Workflow":
        """Load every model that is not loaded yet; one that several names refer to is loaded once.

        Args:
            progress: Called with a model's name, a stage and a fraction.

        Raises:
            WorkflowError: The workflow is not valid.
            ModelReferenceError: A model that is not available.
        """
        self._preparation.load(self.spec, progress)
        return self

    def plan(self, given: Mapping[str, object] | None = None, /, **inputs: object) -> Plan:
        """Which channel each edge gets, and why; token counts where inputs are given.

        With all inputs, and after `calibrate`, it foretells what a run takes (`Plan.forecast`).

        Args:
            given: Inputs as a mapping, beside those by name.
            inputs: All inputs, some or none; the counts that need the others stay unknown.

        Raises:
            InputError: An input that there is not, or one of another type.
            WorkflowError: The workflow is not valid, an edge that must not fall back cannot be
                served, or a turn needs more memory than the workflow's `memory`.
        """
        inputs = {**given_inputs(given), **inputs}
        known = check_inputs(self.spec, inputs, partial=True)
        self.load()
        whole = bool(inputs) or self.spec.inputs.keys() <= known.keys()
        return self._execution.plan(self.spec, known if whole else None)

    def calibrate(self) -> "Workflow":
        """Measure how fast its models are on this machine, for the forecasts of plans; seconds.

        Raises:
            WorkflowError: The workflow is not valid.
            OSError: The user's cache folder, where that is kept, cannot be written.
        """
        self._execution.calibrate(self.load().spec)
        return self

    def remember(self, result: RunResult) -> None:
        """Keep how much the agents wrote in a run, for the forecasts of plans."""
        (self.costs or CostStore()).keep_run(self.spec, result.report)

    @property
    def costs(self) -> CostStore | None:
        """Where both are kept; None for the user's own cache folder."""
        return self._execution.costs

    @costs.setter
    def costs(self, store: CostStore | None) -> None:
        self._execution.costs = store

    def function(self, name: str, kind: str = "function") -> Any:
        """A Python function beside the workflow's file, or of an installed module.

        Args:
            name: ``module:function``.
            kind: What it is wanted as, for errors.

        Raises:
            InputError: The file's programs may not run, or it is not there.
        """
        return self._preparation.toolbox.function(name, kind)

    def with_spec(self, spec: WorkflowSpec) -> "Workflow":
        """A workflow of another spec on this one's models, which are loaded once for both.

        Args:
            spec: A spec whose models are this workflow's. An edge's number says which channel or
                bridge object it was connected with, so edges keep theirs.
        """
        other = copy(self)
        other.spec = spec
        return other

    def fit_bridges(self, progress: Progress | None = None) -> "Workflow":
        """With ``bridges: fit``, fit what the plan lacks; a first run does it by itself.

        Args:
            progress: Called with an edge, a stage and a fraction.

        Two models that cannot be bridged leave their edge to text, or to an error where it must not
        fall back.

        Raises:
            WorkflowError: The workflow is not valid, or an edge that must not fall back cannot be
                served.
        """
        self._preparation.load(self.spec, progress)
        self._execution.listed(self.spec).ready(self.spec, progress)
        return self
