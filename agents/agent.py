"""An agent, as Python code writes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from unspoken.agents.spec.problems import schema_problems
from unspoken.agents.spec.spec import AgentSpec, GenerateSpec, RetrySpec
from unspoken.agents.tools.servers import McpServer, McpTool
from unspoken.channels.errors import WorkflowError

if TYPE_CHECKING:
    from unspoken.agents.models.base import AgentModel


_DEFAULTS = GenerateSpec()


@dataclass(frozen=True, eq=False)
class Agent:
    """A role on a model.

    Args:
        name: Its name, as templates call it.
        model: A loaded model, or a model reference to load when the workflow runs.
        prompt: Template of its turn; it reads ``inputs`` and the ``text`` of agents with an edge
            here.
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
            its prompt in the model's place.

    Raises:
        WorkflowError: A setting that is not as it should be.
    """

    name: str
    model: "AgentModel | str"
    prompt: str
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

    def __post_init__(self) -> None:
        self.spec("model")

    def spec(self, model: str) -> AgentSpec:
        """Its settings, with `model` for the model's name."""
        settings = {**vars(self), "model": model}
        del settings["name"]
        settings["tools"] = tuple(self.tools)
        try:
            return AgentSpec.model_validate(settings)
        except ValidationError as error:
            problems = schema_problems(error, ("agents", self.name))
            raise WorkflowError([problem for _, problem in problems]) from None
