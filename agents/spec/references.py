"""Checks of what a workflow's templates and conditions read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypedDict

from unspoken.agents.prompts.jinja import Reference, references, shorten
from unspoken.agents.prompts.lexer import scan
from unspoken.agents.spec.problems import closest, listed, suggest
from unspoken.agents.spec.shape import AnswerSchema
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import Problem, TemplateError

_OUTPUT_ATTRIBUTES = ("text", "skipped", "items")


class _Data(TypedDict):
    schemas: Mapping[str, AnswerSchema]
    each: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scope:
    """What one template may read.

    Attributes:
        where: The template's path in the workflow.
        inputs: Names of the inputs.
        agents: Names of the agents in reach, with their attributes.
        words: Other names, whose attributes are not checked.
        others: Names of all agents, to tell one out of reach from one that does not exist.
        out_of_reach: Why an agent outside ``agents`` cannot be read, and what would help.
        schemas: Of agents that answer in JSON, what their ``data`` is.
        each: Agents that run once per item: they have ``items``, and their data is a list.
    """

    where: str
    inputs: tuple[str, ...]
    agents: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ("text",)
    words: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    out_of_reach: tuple[str, str] = ("", "")
    schemas: Mapping[str, AnswerSchema] = field(default_factory=dict)
    each: frozenset[str] = frozenset()

    def candidates(self) -> list[str]:
        names = [f"inputs.{name}" for name in self.inputs]
        names += [f"{name}.{attribute}" for name in self.agents for attribute in self.of(name)]
        return [*names, *self.words]

    def of(self, agent: str) -> tuple[str, ...]:
        """What can be read of an agent."""
        items = ("items",) if agent in self.each and "items" not in self.attributes else ()
        return (*self.attributes, *items, *(("data",) if agent in self.schemas else ()))


def template_problems(spec: WorkflowSpec, *, all_connected: bool = False) -> Iterator[Problem]:
    """Yield what is wrong with prompts, systems, loops over items, conditions and outputs.

    Args:
        spec: The workflow.
        all_connected: Take every agent to have an edge to every other, as not all are known.
    """
    inputs, agents = tuple(spec.inputs), tuple(spec.agents)
    for name in agents:
        sharers = {edge.from_ for edge in spec.edges if edge.to == name}
        reach = tuple(agent for agent in agents if all_connected or agent in sharers)
        yield from _agent_problems(spec, name, reach)
    for n, edge in enumerate(spec.edges):
        if edge.when is not None:
            sharer = (edge.from_,) if edge.from_ in spec.agents else ()
            why = ("a condition reads its edge's sharer only", f"use {edge.from_}.text")
            scope = _Scope(
                where=f"edges[{n}].when",
                inputs=inputs,
                agents=sharer,
                others=agents,
                out_of_reach=why,
                **_data_of(spec),
            )
            yield from _check(edge.when, scope, expression=True)
    for name, template in spec.outputs.items():
        where, attributes = f"outputs.{name}", _OUTPUT_ATTRIBUTES
        scope = _Scope(
            where=where, inputs=inputs, agents=agents, attributes=attributes, **_data_of(spec)
        )
        yield from _check(template, scope)


def _agent_problems(spec: WorkflowSpec, name: str, sharers: tuple[str, ...]) -> Iterator[Problem]:
    agent, inputs, agents = spec.agents[name], tuple(spec.inputs), tuple(spec.agents)
    words = ("turn", "item") if agent.for_each is not None else ("turn",)
    scope = _Scope(
        where=f"agents.{name}.prompt",
        inputs=inputs,
        agents=sharers,
        words=words,
        others=agents,
        out_of_reach=("it has no edge to this agent", f"add an edge {{from: ..., to: {name}}}"),
        **_data_of(spec),
    )
    yield from _check(agent.prompt, scope)
    for key, value in agent.inputs.items():
        where = f"agents.{name}.inputs.{key}"
        if isinstance(value, str):
            yield from _check(value, replace(scope, where=where))
    if agent.workflow is not None:
        yield from _input_problems(agent.workflow, agent.inputs, f"agents.{name}.inputs")
    if agent.system is not None:
        why = ("a system prompt reads inputs only", "move it to the prompt")
        where = f"agents.{name}.system"
        scope = _Scope(where=where, inputs=inputs, others=agents, out_of_reach=why)
        yield from _check(agent.system, scope)
    if agent.for_each is not None:
        yield from _for_each_problems(spec, name, agent.for_each)


def _input_problems(
    workflow: WorkflowSpec, given: Mapping[str, object], where: str
) -> Iterator[Problem]:
    """Yield what a sub-workflow is given that it does not take, and what it lacks."""
    for name, value in given.items():
        declared = workflow.inputs.get(name)
        if declared is None:
            expected = listed(workflow.inputs) or "none; it has no inputs"
            found = f"the workflow '{workflow.name}' has no input '{name}'"
            yield Problem(found, f"{where}.{name}", expected, suggest(name, workflow.inputs))
        elif not isinstance(value, str) and not declared.accepts(value):
            found = f"{value!r} is not of type {declared.type}"
            yield Problem(found, f"{where}.{name}", f"a value of type {declared.type}")
        elif isinstance(value, str) and declared.type != "text" and bare_expression(value) is None:
            yield Problem(
                f"{shorten(value)} gives text, and the input '{name}' is of type {declared.type}",
                f"{where}.{name}",
                f"a value of type {declared.type}, or one expression",
                "write {{ inputs.NAME }} and nothing around it",
            )
    for name, declared in workflow.inputs.items():
        if declared.required and name not in given:
            yield Problem(
                f"the workflow '{workflow.name}' lacks its input '{name}'",
                where,
                f"{name}: a value of type {declared.type}",
                f"give it '{name}', for example '{{{{ inputs.{name} }}}}'",
            )


def _for_each_problems(spec: WorkflowSpec, name: str, expression: str) -> Iterator[Problem]:
    lists = tuple(key for key, given in spec.inputs.items() if given.type == "list")
    where = f"agents.{name}.for_each"
    expected = listed(f"inputs.{key}" for key in lists) or "an input of type list"
    problems = list(
        _check(expression, _Scope(where=where, inputs=tuple(spec.inputs)), expression=True)
    )
    if problems:
        yield from problems
        return
    read = {reference.attribute for reference in references(expression, expression=True)}
    if not read.intersection(lists):
        fix = "give the input 'type: list'" if read else "name an input of type list"
        yield Problem(f"'{expression}' is not a list input", where, expected, fix)


def bare_expression(template: str) -> str | None:
    """The expression of a template that is one expression and nothing else; else None."""
    tags = list(scan(template))
    if len(tags) != 1 or tags[0].opener != "{{" or tags[0].text != template.strip():
        return None
    return template.strip().removeprefix("{{").removesuffix("}}").strip("-+ \n\t")


def comment_warnings(spec: WorkflowSpec) -> Iterator[Problem]:
    """Yield the comments of templates, which reach no model; ``{#- ... -#}`` is left aside."""
    templates = {f"outputs.{name}": template for name, template in spec.outputs.items()}
    for name, agent in spec.agents.items():
        templates[f"agents.{name}.prompt"] = agent.prompt
        templates[f"agents.{name}.system"] = agent.system or ""
    for where, template in templates.items():
        for tag in scan(template):
            if tag.opener == "{#" and tag.closed and not tag.text.startswith("{#-"):
                yield Problem(
                    f"{shorten(tag.text)} is a comment and not part of the text",
                    where,
                    fix="write {{ '{#' }} to print the mark, or {#- -#} for a comment you mean",
                    inner_line=tag.line,
                )


def _check(template: str, scope: _Scope, *, expression: bool = False) -> Iterator[Problem]:
    try:
        read = references(template, expression=expression)
    except TemplateError as error:
        yield Problem(error.found, scope.where, error.expected, error.fix, inner_line=error.line)
        return
    seen: set[tuple[str, str | None, bool, tuple[str, ...]]] = set()
    for reference in read:
        what = (reference.root, reference.attribute, reference.asked, reference.path)
        if what not in seen:
            seen.add(what)
            for problem in _check_reference(reference, scope):
                yield replace(problem, inner_line=reference.line)


def _check_reference(reference: Reference, scope: _Scope) -> Iterator[Problem]:
    root, attribute = reference.root, reference.attribute
    shown = root if attribute is None else f"{root}.{attribute}"
    if root in scope.words:
        return
    if root == "inputs":
        allowed = scope.inputs
    elif root in scope.agents:
        allowed = scope.of(root)
    else:
        yield _unknown_name(shown, root, scope)
        return
    if attribute in allowed or (reference.asked and root in scope.agents):
        yield from _check_data(reference, scope)
        return
    if attribute == "data" and root in scope.agents:
        fix = f"give '{root}' generate: {{schema: ...}}"
        yield Problem(f"'{root}' answers in words, not in data", scope.where, f"{root}.text", fix)
        return
    candidates = [f"{root}.{name}" for name in allowed]
    expected = listed(candidates) or "declared inputs; there are none"
    if attribute is None:
        fix = f"write {candidates[0]}" if candidates else ""
        yield Problem(f"'{root}' is not text by itself", scope.where, expected, fix)
        return
    fix = suggest(shown, candidates)
    if root == "inputs":
        fix = fix or f"declare '{attribute}' under 'inputs:'"
    yield Problem(f"'{shown}' is not defined", scope.where, expected, fix)


def _check_data(reference: Reference, scope: _Scope) -> Iterator[Problem]:
    """Refuse what no answer has, as far as its schema tells."""
    root, path = reference.root, list(reference.path)
    if root not in scope.schemas or reference.attribute != "data":
        return
    if root in scope.each and (not path or not path.pop(0).isdigit()):
        return
    lacking = scope.schemas[root].lacking(path)
    if lacking is not None:
        name, known = lacking
        found = f"'{'.'.join((root, 'data', *reference.path))}' is not in the schema of '{root}'"
        yield Problem(found, scope.where, listed(known), suggest(name, known))


def _data_of(spec: WorkflowSpec) -> _Data:
    """The schemas of answers, by agent."""
    schemas = {
        name: agent.answers for name, agent in spec.agents.items() if agent.answers is not None
    }
    each = frozenset(name for name, agent in spec.agents.items() if agent.for_each is not None)
    return {"schemas": schemas, "each": each}


def _unknown_name(shown: str, root: str, scope: _Scope) -> Problem:
    candidates = scope.candidates()
    expected = listed(candidates) or "words only"
    if root in scope.others:
        why, fix = scope.out_of_reach
        return Problem(
            f"'{shown}' cannot be read here: {why}", scope.where, expected, fix.replace("...", root)
        )
    if root == "item":
        fix = "give the agent 'for_each: inputs.NAME'"
        return Problem("'item' is only known with for_each", scope.where, expected, fix)
    fix = suggest(shown, candidates) or suggest(root, scope.others)
    near = root if root in scope.inputs else closest(root, scope.inputs)
    if near:
        fix = f"did you mean 'inputs.{near}'?"
    elif not fix and shown == root:
        fix = f"declare '{root}' under 'inputs:' and write inputs.{root}"
    return Problem(f"'{shown}' is not defined", scope.where, expected, fix)
