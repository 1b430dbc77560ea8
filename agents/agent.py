"""An agent, as Python code writes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from pydantic import ValidationError

from unspoken.agents.spec.problems import schema_problems
from unspoken.agents.spec.spec import AgentSpec, GenerateSpec, RetrySpec
from unspoken.agents.tools.servers import McpServer, McpTool
from unspoken.channels.errors import InputError, Problem, WorkflowError

if TYPE_CHECKING:
    from unspoken.agents.models.base import AgentModel
    from unspoken.agents.workflow import Workflow


_DEFAULTS = GenerateSpec()


def answer_type(function: Callable[..., Any]) -> Any:
    """The type of a function's answers, where they are data; None where they are words."""
    try:
        kind = get_type_hints(function).get("return")
    except (TypeError, NameError):  # an object that is called, or a type that is not there
        return None
    return None if kind in (None, type(None), str, Any, object) else kind


def _require_answering(name: str, model: object) -> None:
    """Refuse what can be called, and answers no words with words.

    Raises:
        InputError: It is no model, no reference and no function.
    """
    if model is None or isinstance(model, str) or hasattr(model, "context_builder"):
        return
    kind, fix = f"of type {type(model).__name__}", ""
    if isinstance(model, type):
        kind, fix = f"the class {model.__name__}", "give it an object of the class, or a function"
    elif hasattr(model, "named_parameters"):
        fix = "wrap it: LocalModel(model, tokenizer)"
    elif hasattr(model, "encode") and hasattr(model, "decode"):
        fix = "wrap it with its model: LocalModel(model, tokenizer)"
    elif callable(model):
        return
    raise InputError(
        f"the model of agent {name!r} is {kind}",
        expected="a LocalModel, a model reference such as 'embedded:NAME', or a function",
        fix=fix,
    )


@dataclass(frozen=True, eq=False)
class Agent:
    """A role on a model.

    Args:
        name: Its name, as templates call it.
        model: A loaded model, or a model reference to load when the workflow runs; or a function,
            async or not, that is given the words of the turn and returns those that answer them. A
            return type other than text becomes the agent's data.
        prompt: Template of its turn; it reads ``inputs`` and the ``text`` of agents with an edge
            here. A function needs none: the messages are its words.
        system: Template of its system turn; None leaves that to the model's chat template.
        generate: Generation settings, as a `GenerateSpec` or a mapping; None only reads.
        tools: Typed functions that it may call while it answers, with or without ``@tool``; servers
            that have tools, or one tool of such a server; or names, as ``module:function``,
            ``mcp:SERVER`` and ``mcp:SERVER/tool``.
        max_calls: Most calls of tools in one turn.
        min_calls: Least calls of tools in one turn; before them it cannot answer.
        template: Arguments for the chat template in its turns, beside those of its model.
        thoughts: Whether what it hands on has its thoughts: ``keep`` or ``drop``; None for its
            output without them and its context with them.
        memory: Keep the context over the turns of a run, start afresh each ``turn``, or go on
            with the conversation of a `Session`, from run to run.
        order: How messages that the prompt does not place stand before it: as the ``edges``, or
            ``auto``, those first that continue the context as they are.
        join: Start when ``all`` in-edges hold a message, when ``any`` does, or when k of them do:
            ``{"first": k}``.
        max_turns: Most turns in a run; a target of a loop has one of 2 or more.
        snapshots: Of a model with recurrent layers: leave a snapshot every so many tokens of the
            context, and not only at the ends of turns.
        for_each: Expression for a list, such as ``inputs.rows``: one run of the agent an item.
        on_error: Whether a turn that fails ends the run (``fail``), sends skips (``skip``) or goes
            on with `default` (``default``); with `for_each`, an item.
        default: What a turn that fails is taken to have written.
        retry: How often a turn that fails is tried again: a `RetrySpec`, its settings, or a number
            of tries.
        timeout: Most seconds that a turn, or an item of for_each, may work.
        idle_timeout: Most seconds from one token of a turn to the next, and to the first.
        ask: What a person does in each turn: ``approve`` or ``edit`` what it wrote, or ``answer``
            its prompt in the model's place. With `for_each` each item asks for itself.
        workflow: A workflow that takes the agent's turns, in place of a model and a prompt, as it
            is now.
        inputs: Its inputs, each a value or a template that reads what a prompt reads.

    Raises:
        WorkflowError: A setting that is not as it should be.
    """

    name: str
    model: "AgentModel | str | Callable[..., Any] | None" = None
    prompt: str | None = None
    system: str | None = None
    generate: GenerateSpec | Mapping[str, Any] | None = _DEFAULTS
    tools: Sequence[Callable[..., Any] | McpServer | McpTool | str] = ()
    max_calls: int = 4
    min_calls: int = 0
    template: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    thoughts: Literal["keep", "drop"] | None = None
    memory: Literal["run", "turn", "session"] = "run"
    order: Literal["edges", "auto"] = "edges"
    join: Literal["all", "any"] | Mapping[str, int] = "all"
    max_turns: int | None = None
    snapshots: int | None = None
    for_each: str | None = None
    on_error: Literal["fail", "skip", "default"] = "fail"
    default: str | None = None
    retry: RetrySpec | Mapping[str, Any] | int | None = None
    timeout: float | None = None
    idle_timeout: float | None = None
    ask: Literal["approve", "edit", "answer"] | None = None
    workflow: "Workflow | None" = None
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_answering(self.name, self.model)
        self.spec("model")

    @property
    def function(self) -> Callable[..., Any] | None:
        """The function that stands in a model's place, where one does."""
        is_model = isinstance(self.model, str) or hasattr(self.model, "context_builder")
        return self.model if callable(self.model) and not is_model else None

    def _forgetting(self, kind: str) -> str:
        """The memory of what begins anew each turn.

        Raises:
            WorkflowError: It is to go on with the conversation of a session.
        """
        if self.memory == "session":
            found = f"the agent {self.name!r} is {kind}, and has memory: session"
            expected = "a model, which has a context to go on from"
            fix = f"give it a model, or leave memory away: {kind} begins anew each turn"
            raise WorkflowError([Problem(found, f"agents.{self.name}.memory", expected, fix)])
        return "turn"

    def spec(self, model: str) -> AgentSpec:
        """Its settings, with `model` for the model's name."""
        settings = {**vars(self), "model": model}
        del settings["name"]
        if self.workflow is not None:
            settings["workflow"] = self.workflow.spec
            for key, unset in (("model", self.model), ("prompt", self.prompt)):
                settings[key] = "" if unset is None else model
            settings["memory"] = self._forgetting("a workflow")
        elif self.function is not None:
            settings |= {"prompt": self.prompt or "", "memory": self._forgetting("a function")}
            kind = answer_type(self.function)
            if kind is not None and self.generate is _DEFAULTS:
                settings["generate"] = {"schema": kind}
        elif self.model is None or self.prompt is None:
            lacks = "model" if self.model is None else "prompt"
            raise WorkflowError(
                [
                    Problem(
                        f"the agent {self.name!r} has no {lacks}",
                        f"agents.{self.name}",
                        "a model and a prompt, a function, or a workflow",
                        f"give it {lacks}=",
                    )
                ]
            )
        settings["tools"] = tuple(self.tools)
        try:
            return AgentSpec.model_validate(settings)
        except ValidationError as error:
            problems = schema_problems(error, ("agents", self.name))
            raise WorkflowError([problem for _, problem in problems]) from None
