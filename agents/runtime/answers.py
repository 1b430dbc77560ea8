"""What a run's agents wrote, what answers in JSON say, and the workflow's outputs of both."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from unspoken.agents.prompts.absent import Absent
from unspoken.agents.prompts.jinja import references, render
from unspoken.agents.runtime.agent_run import AgentRun
from unspoken.agents.runtime.report import AgentResult, RunReport
from unspoken.agents.shapes.shape import keeps_to
from unspoken.agents.spec.shape import AnswerSchema
from unspoken.agents.spec.spec import AgentSpec, GenerateSpec, WorkflowSpec
from unspoken.channels.errors import RunError, TemplateError


def schema_of(agent: AgentSpec) -> AnswerSchema | None:
    """The schema of an agent's answers, where they have one."""
    return agent.answers


def require_whole(agent: AgentRun, text: str) -> None:
    """Refuse an answer that is not of the agent's shape.

    Raises:
        RunError: It ended too soon, or the type that it is read as refuses it.
    """
    schema, settings = schema_of(agent.spec), agent.spec.generate
    if settings is None:
        return
    # What a person writes in the agent's place is in the person's own words.
    if agent.spec.ask in (None, "approve") and not keeps_to(settings, text, agent.model):
        kind = "regex" if settings.regex else "choices"
        raise RunError(
            f"the answer is not what its {kind} says; it ends in {text[-60:]!r}",
            expected="a whole answer",
            fix=f"raise max_new_tokens ({settings.max_new_tokens}), or leave it more of the "
            "model's context",
        )
    if schema is None:
        return
    try:
        schema.read(text)
    except ValueError as error:
        raise RunError(
            f"the answer is not what its schema says: {_told(error)}; it ends in {text[-60:]!r}",
            expected="whole JSON of the schema",
            fix=f"raise max_new_tokens ({settings.max_new_tokens}), or bound the schema's strings "
            "and lists with maxLength and maxItems",
        ) from error


def _told(error: ValueError) -> str:
    """What was wrong with an answer, on one line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else first["msg"]
    return str(error)


def weighed_choices(
    settings: GenerateSpec | None, likelihoods: Sequence[float]
) -> dict[str, float] | None:
    """How likely each of an agent's choices was; None where nothing was weighed."""
    if settings is None or not likelihoods:
        return None
    return dict(zip(settings.choices, likelihoods, strict=True))


def plain_data(agent: AgentRun) -> object:
    """What an agent's last turn says, as plain data; with ``for_each`` a list, one for each item.

    None for an agent without a schema, for one that wrote nothing, and for an item that failed.
    """
    return _read(agent, plain=True)


def told_of(agent: AgentRun) -> dict[str, object]:
    """What templates may read of an agent besides its words: ``data``, and ``items``."""
    told: dict[str, object] = {}
    if agent.spec.for_each is not None:
        told["items"] = list(agent.items)
    if (data := plain_data(agent)) is not None:
        told["data"] = data
    return told


def typed_data(agent: AgentRun) -> object:
    """The same as instances of the type that the schema was made of, where it was of one."""
    return _read(agent, plain=False)


def data_in(agent: AgentRun, words: str) -> object:
    """The plain data in words that stand for an agent's answer; None where there is none."""
    schema = schema_of(agent.spec)
    return None if schema is None else _value(AnswerSchema(schema.text), words)


def _read(agent: AgentRun, *, plain: bool) -> object:
    schema = schema_of(agent.spec)
    if schema is None or not (agent.texts or agent.items):
        return None
    schema = AnswerSchema(schema.text) if plain else schema
    if agent.spec.for_each is not None:
        return [_value(schema, text) for text in agent.items]
    return _value(schema, agent.texts[-1])


def _value(schema: AnswerSchema, text: str) -> object:
    try:
        return schema.read(text)
    except ValueError:  # words that no turn of this run wrote, such as a message from elsewhere
        return None


def results_of(agents: Mapping[str, AgentRun]) -> dict[str, AgentResult]:
    """What each agent wrote so far; an agent that wrote nothing is not in it."""
    return {
        name: AgentResult(
            text="".join(agent.texts[-1:]),
            turns=tuple(agent.texts),
            items=tuple(agent.items),
            data=typed_data(agent),
            likelihoods=agent.turns[-1].likelihoods if agent.turns else None,
        )
        for name, agent in agents.items()
        if agent.texts or agent.items
    }


def outputs_of(
    spec: WorkflowSpec,
    inputs: Mapping[str, object],
    agents: Mapping[str, AgentRun],
    *,
    finished: bool = False,
) -> dict[str, str]:
    """The workflow's outputs; without any, the words of every agent that nobody reads.

    Args:
        spec: The workflow.
        inputs: Checked input values.
        agents: Its agents.
        finished: Leave out what reads an agent that wrote nothing, or cannot be rendered, as in a
            run that failed.
    """
    wrote = {name for name, agent in agents.items() if agent.texts}
    if not spec.outputs:
        read = {edge.from_ for edge in spec.edges if not edge.loop}
        names = [
            name for name in agents if name not in read and not (finished and name not in wrote)
        ]
        return {name: "".join(agents[name].texts[-1:]) for name in names}
    context: dict[str, object] = {"inputs": dict(inputs)}
    for name, agent in agents.items():
        told = {"skipped": agent.skipped, "items": list(agent.items), **told_of(agent)}
        context[name] = {"text": agent.texts[-1], **told} if agent.texts else Absent(told)
    outputs = {}
    for name, template in spec.outputs.items():
        if not finished:
            outputs[name] = render(template, context)
        elif {read.root for read in references(template)} - {"inputs"} <= wrote:
            with suppress(TemplateError):  # the run's own error is the one to tell
                outputs[name] = render(template, context)
    return outputs


def with_inner(report: RunReport, inners: Mapping[str, RunReport]) -> RunReport:
    """A report with those of runs inside of it, whose agents have the outer turn before the name.

    Args:
        report: The outer run's.
        inners: The inner runs', by outer turn: ``AGENT.TURN``, with ``.ITEM`` behind it for an
            item.
    """

    def ends(place: str, record: Any) -> Any:
        sharer, receiver = f"{place}/{record.sharer}", f"{place}/{record.receiver}"
        return replace(record, sharer=sharer, receiver=receiver)

    def owned(place: str, record: Any) -> Any:
        return replace(record, agent=f"{place}/{record.agent}")

    def edged(place: str, fallback: tuple[str, str]) -> tuple[str, str]:
        return f"{place}/{fallback[0]}", fallback[1]

    renamed: dict[str, Callable[[str, Any], Any]] = {
        **dict.fromkeys(("edges", "loops_ended", "late_messages"), ends),
        **dict.fromkeys(("failed_items", "failed_turns", "empty_turns"), owned),
        "fallbacks": edged,
        "unknown_calls": lambda place, call: call,
    }
    # All at once: a copy for each inner run would be quadratic in the items of for_each.
    lists: dict[str, Any] = {}
    for name, rename in renamed.items():
        inside = (rename(at, one) for at, inner in inners.items() for one in getattr(inner, name))
        lists[name] = (*getattr(report, name), *inside)
    agents, linears = dict(report.agents), dict(report.linears)
    for place, inner in inners.items():
        agents |= {f"{place}/{name}": turns for name, turns in inner.agents.items()}
        linears |= {f"{place}/{name}": kind for name, kind in inner.linears.items()}
    hits = report.prefix_hits + sum(inner.prefix_hits for inner in inners.values())
    return replace(report, **lists, agents=agents, linears=linears, prefix_hits=hits)
