"""What a turn may be that may call a tool: a call with arguments of its schema, or an answer."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llguidance import LLMatcher

from unspoken.agents.models.base import AgentModel
from unspoken.agents.prompts.tool_turns import ToolTurns
from unspoken.agents.shapes.grammar import ShapeGrammar
from unspoken.agents.shapes.shape import Shape, made_grammar, thoughts_end
from unspoken.agents.shapes.vocabulary import Vocabulary, vocabulary_of
from unspoken.agents.spec.generate import GenerateSpec
from unspoken.agents.spec.shape import WRITTEN, AnswerSchema
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.agents.tools.functions import Tool
from unspoken.agents.tools.toolbox import Toolbox
from unspoken.channels.errors import ModelSupportError, Problem


def calling_shape(
    settings: GenerateSpec, model: AgentModel, tools: Sequence[Tool], *, answers: bool = True
) -> Shape:
    """A call of one of the tools as the template writes calls, or an answer of the agent's shape.

    An answer in words begins otherwise than a call. Without `answers` it can only call.

    Raises:
        ModelSupportError: The model's tokenizer has no such grammars.
    """
    vocabulary, turns = vocabulary_of(model), model.template.tools
    both = (
        None
        if settings.schema_ is None or not answers
        else _in_json(settings.schema_, turns, tools)
    )
    if both is not None:
        text = AnswerSchema.of(both).grammar
        return Shape(made_grammar(text, thoughts_end(model), vocabulary))
    calls = []
    for tool in tools:
        before, behind = turns.call_texts(tool.name)
        try:
            schema = {**AnswerSchema.of(tool.parameters).schema, "x-guidance": WRITTEN}
        except ValueError as error:
            raise ValueError(f"tool {tool.name!r}: {error}") from error
        parts = (*_literal(model, vocabulary, before), f"%json {json.dumps(schema)}")
        calls.append(" ".join((*parts, *_literal(model, vocabulary, behind))))
    first = model.template.tools.call_texts(tools[0].name)[0].lstrip()[:1]
    lines = [
        "start: answer | call" if answers else "start: call",
        f"call: {' | '.join(f'call{number}' for number in range(len(calls)))}",
        *(f"call{number}: {call}" for number, call in enumerate(calls)),
        *(_answer(settings, first) if answers else ()),
    ]
    text = LLMatcher.grammar_from_lark("\n".join(lines))
    return Shape(made_grammar(text, thoughts_end(model), vocabulary))


def _in_json(
    answer: AnswerSchema, turns: ToolTurns, tools: Sequence[Tool]
) -> dict[str, Any] | None:
    """One schema of the calls and the answer; None where the template's calls are no JSON.

    Two rules that begin with one brace would not do: a text that may be the one is not the other.
    """
    kinds: list[dict[str, Any]] = []
    final = answer.schema
    defined = dict(final.pop("$defs", {}))
    for tool in tools:
        before, behind = turns.call_texts(tool.name)
        try:
            call = json.loads(f"{before}{{}}{behind}")
        except ValueError:
            return None
        if json.dumps(call) != f"{before}{{}}{behind}":
            return None
        arguments = dict(tool.parameters)
        defined |= arguments.pop("$defs", {})  # references begin at the root
        parts = {key: arguments if value == {} else {"const": value} for key, value in call.items()}
        kinds.append({"type": "object", "properties": parts, "required": list(parts)})
    return {"anyOf": [*kinds, final], "$defs": defined}


def call_problems(
    spec: WorkflowSpec, models: Mapping[str, AgentModel], toolbox: Toolbox
) -> Iterator[Problem]:
    """Yield the tools whose calls an agent's model cannot be held to.

    Args:
        spec: The workflow.
        models: The model of every agent.
        toolbox: Its tools.
    """
    for name, agent in spec.agents.items():
        if not agent.tools or agent.generate is None:
            continue
        try:
            tools, answers = toolbox.of(agent.tools), agent.min_calls == 0
            shape = calling_shape(agent.generate, models[name], tools, answers=answers)
            assert isinstance(shape.grammar, ShapeGrammar)
            least, most = shape.grammar.least, agent.generate.max_new_tokens
        except ModelSupportError as error:
            yield Problem(error.found, f"agents.{name}.tools", error.expected, error.fix)
        except ValueError as error:
            found = f"llguidance refuses its calls: {error}"
            yield Problem(found, f"agents.{name}.tools", "arguments of simpler types")
        else:
            if least > most:
                found = f"a call or an answer of '{name}' takes {least} tokens and more"
                fix = f"raise max_new_tokens to {2 * least} or more"
                where = f"agents.{name}.tools"
                yield Problem(found, where, f"at most the {most} of max_new_tokens", fix)


def _answer(settings: GenerateSpec, first: str) -> list[str]:
    """The rules of an answer that is no call."""
    if settings.schema_ is not None:
        schema: dict[str, Any] = {**settings.schema_.schema, "x-guidance": WRITTEN}
        return [f"answer: %json {json.dumps(schema)}"]
    if settings.regex is not None:
        pattern = re.sub(
            r"\\.|/", lambda part: "\\/" if part[0] == "/" else part[0], settings.regex
        )
        return ["answer: WORDS", f"WORDS: /{pattern}/"]
    return ["answer: WORDS?", f"WORDS: /[^{re.escape(first)}](.|\\n)*/"]


def _literal(model: AgentModel, vocabulary: Vocabulary, text: str) -> list[str]:
    """A template's text as parts of a rule; its markers are tokens, all else is letters."""
    parts, letters = list[str](), list[int]()
    for token in (*model.text.encode(text, ""), None):
        marker = token is not None and vocabulary.tokens.is_special_token(token)
        if letters and (token is None or marker):
            parts.append(json.dumps(vocabulary.tokens.decode_str(letters)))
            letters = []
        if marker:
            parts.append(f"<[{token}]>")
        elif token is not None:
            letters.append(token)
    return parts
