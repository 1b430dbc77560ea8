"""Spans of a run for OpenTelemetry, by its conventions for generative AI.

A workflow, an agent's turn, the chat with its model and a call of a tool are spans of these
conventions; a message's carry is one of ours. Only the API is imported. Where no SDK is set up, or
OpenTelemetry is not installed, a run asks once and makes no span.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import time_ns
from typing import Any

from unspoken.agents.engines.base import TurnOutcome, TurnRequest
from unspoken.agents.runtime.failures import first_error
from unspoken.agents.runtime.report import EdgeReport

try:
    from opentelemetry import trace
    from opentelemetry.trace import SpanKind, StatusCode
except ImportError:  # the extra `telemetry` is not installed
    trace = None  # type: ignore[assignment]

OnOutcome = Callable[[TurnOutcome], None]
OnStatus = Callable[[str], None]
Attributes = dict[str, Any]

_PROVIDER: Attributes = {"gen_ai.provider.name": "unspoken"}
"""Who computes: the models run in this process."""


class Telemetry:
    """The spans of one run.

    Args:
        workflow: The workflow's name.
        run_id: The run's id.
    """

    def __init__(self, workflow: str, run_id: str) -> None:
        self._workflow, self._run_id = workflow, run_id
        self._tracer = _tracer()
        self._context: Any = None

    @contextmanager
    def run(self) -> Iterator[OnStatus]:
        """The whole run; its turns are inside of it, whoever starts them.

        Yields:
            What to call with how it ended, where it did not end by itself.
        """
        if self._tracer is None:
            yield lambda status: None
            return
        attributes = {"gen_ai.workflow.name": self._workflow, "unspoken.run_id": self._run_id}
        with _span(self._tracer, "invoke_workflow", self._workflow, attributes) as span:
            self._context = trace.set_span_in_context(span)
            yield lambda status: span.set_attribute("unspoken.stopped_by", status)

    def turn(self, agent: str, turn: int) -> AbstractContextManager[object]:
        """A turn of an agent; with ``for_each`` all of its items."""
        if self._tracer is None:
            return nullcontext()
        attributes = {**_PROVIDER, "gen_ai.agent.name": agent, "unspoken.turn": turn}
        return _span(self._tracer, "invoke_agent", agent, attributes, context=self._context)

    def chat(
        self, model: str, request: TurnRequest, item: int | None
    ) -> AbstractContextManager[OnOutcome]:
        """What an engine computes for a turn, or for an item of it.

        Args:
            model: The model's reference.
            request: What is asked.
            item: Number of the item; None without ``for_each``.

        Returns:
            Enters with what to call with what it left behind.
        """
        if self._tracer is None:
            return nullcontext(_not_traced)
        return self._traced_chat(model, request, item)

    @contextmanager
    def _traced_chat(
        self, model: str, request: TurnRequest, item: int | None
    ) -> Iterator[OnOutcome]:
        attributes = {**_PROVIDER, "gen_ai.request.model": model, **_settings(request)}
        if item is not None:
            attributes["unspoken.item"] = item
        with _span(self._tracer, "chat", model, attributes, kind=SpanKind.CLIENT) as span:
            yield lambda outcome: span.set_attributes(_usage(outcome))

    def carried(self, edge: EdgeReport) -> None:
        """A message that is in its receiver's context now."""
        if self._tracer is None:
            return
        end = time_ns()
        ends = f"{edge.sharer} -> {edge.receiver}"
        attributes: Attributes = {
            "unspoken.edge": ends,
            "unspoken.carry.channel": edge.channel,
            "unspoken.carry.mode": edge.mode,
            "unspoken.carry.exact": edge.exact,
            "unspoken.carry.bytes": edge.bytes,
            "unspoken.carry.tokens": edge.tokens,
            "unspoken.carry.reused_tokens": edge.reused,
        }
        start = end - int(edge.seconds * 1e9)
        span = self._tracer.start_span(f"carry {ends}", attributes=attributes, start_time=start)
        span.end(end)


@contextmanager
def executing_tool(name: str, call_id: str = "") -> Iterator[OnStatus]:
    """A call of a tool, inside the turn that makes it.

    Yields:
        What to call with the type of what went wrong, where the tool failed.
    """
    tracer = _tracer()
    if tracer is None:
        yield lambda error: None
        return
    attributes = {"gen_ai.tool.name": name, "gen_ai.tool.type": "function"}
    if call_id:
        attributes["gen_ai.tool.call.id"] = call_id
    with _span(tracer, "execute_tool", name, attributes) as span:
        yield lambda kind: _failed(span, kind, "the tool failed")


@contextmanager
def _span(
    tracer: Any, operation: str, name: str, attributes: Attributes, **settings: Any
) -> Iterator[Any]:
    """A span that is the current one; an error is its status and its type.

    A cancel and a wait for a person are no errors, and are told apart.
    """
    attributes = {"gen_ai.operation.name": operation, **attributes}
    settings |= {"record_exception": False, "set_status_on_exception": False}
    label = f"{operation} {name}".strip()
    with tracer.start_as_current_span(label, attributes=attributes, **settings) as span:
        try:
            yield span
        except BaseException as raised:
            error = first_error(raised)
            if isinstance(error, Exception):
                _failed(span, type(error).__name__, str(error))
            else:
                span.set_attribute("unspoken.stopped_by", type(error).__name__)
            raise


def _not_traced(outcome: TurnOutcome) -> None:
    """Nobody looks at what a turn left behind."""


def _failed(span: Any, kind: str, words: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, words)


def _tracer() -> Any:
    """The tracer of an SDK that is set up; None where there is none."""
    if trace is None:
        return None
    provider = trace.get_tracer_provider()
    silent = trace.ProxyTracerProvider, trace.NoOpTracerProvider
    return None if isinstance(provider, silent) else provider.get_tracer("unspoken")


def _settings(request: TurnRequest) -> Attributes:
    sampling = request.sampling
    if sampling is None:
        return {}
    asked = {
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.seed": sampling.seed,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _usage(outcome: TurnOutcome) -> Attributes:
    if outcome.restored:  # its tokens were counted when they were computed
        return {"unspoken.restored": True, "gen_ai.response.finish_reasons": (outcome.finish,)}
    return {
        "gen_ai.usage.input_tokens": outcome.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": outcome.usage.generated_tokens,
        "gen_ai.usage.cache_read.input_tokens": outcome.usage.reused_tokens,
        "gen_ai.response.finish_reasons": (outcome.finish,),
    }
