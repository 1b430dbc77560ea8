"""The models of a workflow, loaded by reference, and the engines that compute on them."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Protocol, runtime_checkable

from unspoken.agents.engines.base import Engine, HasEngine, States
from unspoken.agents.engines.local import LocalEngine
from unspoken.agents.engines.worker import WhenRoom, Workers, at_once
from unspoken.agents.models.base import AgentModel
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.tool_turns import Tools
from unspoken.agents.spec.loader import LoadedWorkflow
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.agents.tools.functions import Tool
from unspoken.channels.errors import InputError

Progress = Callable[[str, str, float], None]
"""Called with a model's or an edge's name, a stage and a fraction."""


def load_models(
    spec: WorkflowSpec,
    models: dict[str, AgentModel],
    source: LoadedWorkflow | None,
    progress: Progress | None,
    loaded: dict[tuple[object, ...], LocalModel] | None = None,
) -> None:
    """Load what is not loaded yet; one base serves all of its adapters.

    Args:
        spec: A valid workflow.
        models: The models loaded so far, by name; the others are put in.
        source: The workflow's file, where there is one; errors then name its lines.
        progress: Told of each model's stages.
        loaded: What was loaded for workflows around this one, which serves it too.

    Raises:
        ModelReferenceError: A model that is not available.
    """
    loaded = {} if loaded is None else loaded
    for name, model in spec.models.items():
        if name in models:
            continue
        device = model.device if isinstance(model.device, str) else model.device.model_dump()
        base = (model.ref, model.dtype, str(device), model.revision, None)
        if base not in loaded:
            with _placing(source, f"models.{name}"):
                loaded[base] = LocalModel.load(
                    model.ref,
                    dtype=model.dtype,
                    device=device,
                    revision=model.revision,
                    progress=step_of(progress, name),
                )
        key = (*base[:-1], model.adapter)
        if model.adapter is not None and key not in loaded:
            with _placing(source, f"models.{name}.adapter"):
                loaded[key] = loaded[base].with_adapter(model.adapter)
        asked = _arguments(model.template)
        if asked and (*key, asked) not in loaded:
            loaded[(*key, asked)] = loaded[key].with_template(model.template)
        models[name] = loaded[(*key, asked) if asked else key]


class Templated:
    """Models as agents talk to them: with arguments for their chat template, and its date.

    Each is made once. A model whose template writes the date has one date for all of a run, so that
    its agents' contexts begin alike.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], tuple[LocalModel, LocalModel]] = {}
        self._calling: dict[tuple[int, ...], tuple[AgentModel, AgentModel, tuple[Tool, ...]]] = {}
        self._dated: dict[int, tuple[LocalModel, LocalModel]] = {}

    def today(self, model: AgentModel) -> AgentModel:
        """A model whose chat template writes the date of now, where it writes one."""
        if not isinstance(model, LocalModel):
            return model
        _, last = self._dated.get(id(model), (model, model))
        dated = last.dated(datetime.now().astimezone())
        if dated is not last:
            self._dated[id(model)] = model, dated  # the model too: its id stays its own
        return dated

    def calling(self, model: AgentModel, tools: Sequence[Tool]) -> AgentModel:
        """A model whose template is given these tools; itself without any.

        Raises:
            InputError: A model whose template takes no tools, or a tool that says what marks turns.
        """
        if not tools:
            return model
        if not isinstance(model, CallsTools):
            raise InputError(
                f"tools stand at an agent whose model is a {type(model).__name__}",
                expected="a LocalModel, or a model with with_tools",
                fix="remove the tools from the agent",
            )
        key = id(model), *map(id, tools)
        if key not in self._calling:
            _require_words(model, tools)
            made = model.with_tools([tool.schema for tool in tools])
            self._calling[key] = model, made, tuple(tools)  # their ids stay their own
        return self._calling[key][1]

    def of(self, model: AgentModel, arguments: Mapping[str, object]) -> AgentModel:
        """A model whose template is given these beside its own arguments; itself without any.

        Raises:
            InputError: A model that is no `LocalModel`: its template takes no arguments.
        """
        if not arguments:
            return model
        if not isinstance(model, LocalModel):
            raise InputError(
                f"template stands at an agent whose model is a {type(model).__name__}",
                expected="a model that is computed here, whose chat template takes arguments",
                fix="remove template from the agent",
            )
        key = id(model), *_arguments(arguments)
        if key not in self._made:
            made = model.with_template({**model.template_arguments, **arguments})
            self._made[key] = model, made  # the model too: its id stays its own
        return self._made[key][1]


@runtime_checkable
class CallsTools(Protocol):
    """A model whose template can be given tools."""

    def with_tools(self, tools: Tools) -> AgentModel:
        """The same model, whose turns may call tools of these schemas."""


def _require_words(model: AgentModel, tools: Sequence[Tool]) -> None:
    """Refuse a tool that could open or close a turn: templates write its schema as their own text.

    Raises:
        InputError: There is one.
    """
    for tool in tools:
        # Templates write the schema as JSON, or its parts as they are.
        texts = json.dumps(tool.schema, ensure_ascii=False), "\n".join(_texts(tool.schema))
        if any(map(model.text.marks_turns, texts)):
            raise InputError(
                f"what the tool {tool.name!r} says of itself holds a marker of turns",
                expected="a name, a description and a schema in words",
                fix="leave the tool out: its words would be read as turns of their own",
            )


def _texts(value: object) -> Iterator[str]:
    """Every text in plain data, keys too."""
    match value:
        case str():
            yield value
        case Mapping():
            for key, part in value.items():
                yield str(key)
                yield from _texts(part)
        case list() | tuple():
            for part in value:
                yield from _texts(part)


def engines_for(
    models: Mapping[str, AgentModel],
    states: States,
    workers: Workers,
    when_room: WhenRoom = at_once,
) -> dict[str, Engine]:
    """What computes the turns of each agent: one engine a model, the model's own if it has one.

    Args:
        models: The model of every agent, by agent.
        states: Where the engines keep their states.
        workers: The devices' workers.
        when_room: Asked after every event of a turn computed here; the turn waits for it.
    """
    engines: dict[int, Engine] = {}
    for model in models.values():
        if id(model) not in engines:
            if isinstance(model, HasEngine):
                engines[id(model)] = model.make_engine(states)
            elif isinstance(model, LocalModel):
                engines[id(model)] = LocalEngine(model, states, workers.of(model.device))
            else:
                raise InputError(
                    f"nothing computes turns of {type(model).__name__}",
                    expected="a LocalModel, or a model with make_engine",
                )
            engine = engines[id(model)]
            if isinstance(engine, LocalEngine):
                engine.when_room = when_room
    return {name: engines[id(model)] for name, model in models.items()}


def step_of(progress: Progress | None, name: str) -> Callable[[str, float], None] | None:
    """The part of `progress` that is told of one name."""
    if progress is None:
        return None
    return lambda stage, fraction: progress(name, stage, fraction)


def _arguments(template: Mapping[str, object]) -> tuple[object, ...]:
    """A key of template arguments; true and 1 are two, for a template may write them out."""
    return tuple((name, type(value), value) for name, value in sorted(template.items()))


def _placing(source: LoadedWorkflow | None, where: str) -> AbstractContextManager[None]:
    return nullcontext() if source is None else source.placing(where)
