"""A tool: a typed function, with a JSON schema of its arguments."""

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints, overload

import anyio
import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, create_model
from pydantic_core import to_jsonable_python

from unspoken.channels.errors import InputError

MOST_THREADS = 40
"""How many functions that are not async run at once on one event loop."""

_LIMITER = RunVar[CapacityLimiter]("unspoken.tools")

_NAME = r"[A-Za-z_][\w-]{0,63}"
"""Names that templates write, and that models keep apart from what stands around them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tool:
    """What an agent may call.

    Attributes:
        name: Its name, as the model calls it.
        description: What it does, for the model.
        parameters: JSON schema of its arguments.
        run: Computes a result from arguments, and raises what goes wrong.
        ref: How a file names it: ``module:function``.
        idempotent: Whether a call may be made twice without harm.
        function: The Python function behind it, if any.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[[Mapping[str, Any]], Awaitable[str]]
    ref: str = ""
    idempotent: bool = False
    function: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's own result, for Python code that calls it."""
        if self.function is None:
            raise TypeError(f"the tool {self.name!r} is no Python function")
        return self.function(*args, **kwargs)

    @property
    def schema(self) -> dict[str, Any]:
        """What a chat template is given of it."""
        about = {"name": self.name, "description": self.description}
        return {"type": "function", "function": {**about, "parameters": dict(self.parameters)}}


@overload
def tool(function: Callable[..., Any]) -> Tool: ...
@overload
def tool(*, name: str = "", idempotent: bool = False) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None, *, name: str = "", idempotent: bool = False
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """A typed Python function as a tool: ``@tool``, or ``@tool(idempotent=True)``.

    The schema of its arguments comes from its annotations, what a model is told of it from its
    docstring: the first paragraph, and the lines under ``Args:``. A function that is not async runs
    on a thread. What it returns is given to the model as text, or as JSON.

    Args:
        function: The function.
        name: Its name, where not the function's own.
        idempotent: Whether a call may be made twice without harm, as after a run was killed.

    Raises:
        InputError: An argument without an annotation, or without a name.
    """

    def made(function: Callable[..., Any]) -> Tool:
        called, described = name or _name(function), inspect.getdoc(function) or ""
        if not is_name(called):
            raise InputError(
                f"a tool is called {called!r}",
                expected="a name of letters, digits, _ and -",
                fix="write a function with a name, or @tool(name=...)",
            )
        try:
            arguments = _arguments(function, called, _described(described))
            parameters = _parameters(arguments)
        except (TypeError, NameError, PydanticUserError) as error:
            raise InputError(
                f"the arguments of the tool {called!r} cannot be read: {error}",
                expected="a function, with types that JSON has",
                fix="write text, numbers, lists or pydantic models as its arguments' types",
            ) from error

        async def run(given: Mapping[str, Any]) -> str:
            values = arguments.model_validate(dict(given))
            named = {key: getattr(values, key) for key in type(values).model_fields}
            if inspect.iscoroutinefunction(function):
                return _text(await apart(lambda: function(**named)))
            # A call that hangs does not hold up whoever cancels the run; it is then an unknown one.
            result = await anyio.to_thread.run_sync(
                lambda: function(**named), abandon_on_cancel=True, limiter=threads()
            )
            waits = inspect.isawaitable(result)
            return _text(await apart(lambda: result) if waits else result)

        return Tool(
            name=called,
            description=" ".join(described.split("\n\n")[0].split()),
            parameters=parameters,
            run=run,
            ref=_ref(function, called),
            idempotent=idempotent,
            function=function,
        )

    return made if function is None else made(function)


def is_name(text: str) -> bool:
    """Whether a tool may be called so."""
    return re.fullmatch(_NAME, text) is not None


def as_tool(value: object) -> Tool:
    """A tool, or a function as one.

    Raises:
        InputError: It is neither.
    """
    if isinstance(value, Tool):
        return value
    if not callable(value):
        raise InputError(
            f"a {type(value).__name__} is no tool",
            expected="a typed function, or one with @tool",
            fix="write the function, and give it to the agent",
        )
    return tool(value)


def _arguments(
    function: Callable[..., Any], name: str, described: Mapping[str, str]
) -> type[BaseModel]:
    hints, fields = get_type_hints(function, include_extras=True), dict[str, Any]()
    for key, parameter in inspect.signature(function).parameters.items():
        kinds = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY)
        if key not in hints or parameter.kind in kinds or key.startswith("_"):
            raise InputError(
                f"the argument {key!r} of the tool {name!r} has no type, or no name to call it by",
                expected="arguments with annotations",
                fix=f"write {key}: str, or another type",
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[key] = hints[key], Field(default, description=described.get(key))
    made: type[BaseModel] = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    return made


def _parameters(arguments: type[BaseModel]) -> dict[str, Any]:
    schema = arguments.model_json_schema()
    for part in (schema, *schema.get("properties", {}).values()):
        part.pop("title", None)
    return {"properties": {}, **schema}


def _described(doc: str) -> dict[str, str]:
    """What a docstring says of each argument, under ``Args:``."""
    told: dict[str, str] = {}
    _, _, rest = doc.partition("Args:\n")
    for line in rest.split("\n\n")[0].splitlines():
        name, colon, words = line.strip().partition(":")
        if colon and name.isidentifier():
            told[name] = words.strip()
        elif told and line.strip():
            last = next(reversed(told))
            told[last] = f"{told[last]} {line.strip()}"
    return told


def threads() -> CapacityLimiter:
    """The threads of people's functions; one that hangs takes none from the store and engines."""
    limiter = _LIMITER.get(None)
    if limiter is None:
        limiter = CapacityLimiter(MOST_THREADS)
        _LIMITER.set(limiter)
    return limiter


async def apart(make: Callable[[], Awaitable[Any]]) -> Any:
    """Await a person's function in a task of its own: its context variables stay in it.

    One task takes the turns of many agents, so what a function sets would be seen by others.
    """
    results, errors = list[Any](), list[Exception]()

    async def call() -> None:
        try:
            results.append(await make())
        except Exception as error:  # raised again, without the task group's own
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
    if errors:
        raise errors[0]
    return results[0]


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _ref(function: Callable[..., Any], name: str) -> str:
    """How a workflow file beside the function's own file names it."""
    module = function.__module__
    if "." not in module:
        try:
            module = Path(inspect.getfile(function)).stem
        except (OSError, TypeError):  # typed into a console
            module = function.__module__
    path = getattr(function, "__qualname__", name)
    return f"{module}:{path.replace('<locals>', 'locals')}"


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(to_jsonable_python(value), ensure_ascii=False)
