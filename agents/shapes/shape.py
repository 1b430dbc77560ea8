"""The shape of an agent's answers on its model: a grammar, or texts to choose from."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from unspoken.agents.delegates.model import Delegate
from unspoken.agents.engines.base import Grammar
from unspoken.agents.models.base import AgentModel
from unspoken.agents.shapes.grammar import ShapeGrammar
from unspoken.agents.shapes.vocabulary import Vocabulary, vocabulary_of
from unspoken.agents.spec.generate import GenerateSpec
from unspoken.agents.spec.shape import regex_grammar
from unspoken.agents.spec.spec import WorkflowSpec
from unspoken.channels.errors import ModelSupportError, Problem


@dataclass(frozen=True, slots=True)
class Shape:
    """What an engine is told of an answer's shape.

    Attributes:
        grammar: What the words may be; None for any.
        choices: Texts as tokens, one of which is the answer; empty for words of the model's own.
    """

    grammar: Grammar | None = None
    choices: tuple[tuple[int, ...], ...] = ()


def shape_of(settings: GenerateSpec, model: AgentModel) -> Shape:
    """The shape of the answers of an agent with these settings.

    Choices are weighed as whole texts. A model that thinks first writes one of them by a grammar,
    since only its thoughts tell which.

    Raises:
        ModelSupportError: The model's tokenizer has no such grammars.
    """
    if not (settings.schema_ or settings.choices or settings.regex):
        return Shape()
    after = thoughts_end(model)
    if settings.choices and not after:
        return Shape(choices=choices_of(settings.choices, model))
    text = _grammar_text(settings)
    return Shape() if text is None else Shape(made_grammar(text, after, vocabulary_of(model)))


def _grammar_text(settings: GenerateSpec) -> str | None:
    if settings.schema_ is not None:
        return settings.schema_.grammar
    if settings.regex is not None:
        return regex_grammar(settings.regex)
    if settings.choices:
        return regex_grammar("|".join(map(re.escape, settings.choices)))
    return None


@lru_cache(maxsize=128)
def made_grammar(text: str, after: tuple[int, ...], vocabulary: Vocabulary) -> ShapeGrammar:
    """A grammar, made once for all turns."""
    return ShapeGrammar(vocabulary, text, after)


def thoughts_end(model: AgentModel) -> tuple[int, ...]:
    """The ids that end the thoughts which every turn of a model begins with; empty for none."""
    thoughts = model.template.thoughts
    if thoughts is None or not thoughts.opened:
        return ()
    return model.text.encode(thoughts.closing, "")


def choices_of(choices: tuple[str, ...], model: AgentModel) -> tuple[tuple[int, ...], ...]:
    """Texts as an answer has them, in tokens; each with its end where one begins another."""
    prompt = model.template.prompt
    ids = [model.text.words_with_offsets(text, after=prompt)[0] for text in choices]
    begins = any(a != b and b[: len(a)] == a for a in ids for b in ids)
    end = next((token for token in model.context_builder.close() if token in model.stop_ids), None)
    if begins and end is None and model.stop_ids:
        end = min(model.stop_ids)
    return tuple((*one, end) if begins and end is not None else tuple(one) for one in ids)


def keeps_to(settings: GenerateSpec, text: str, model: AgentModel) -> bool:
    """Whether a text is one of an agent's choices, or matches its regex; other shapes are free."""
    if settings.choices:  # space before an answer goes with the thoughts
        return text.strip() in {choice.strip() for choice in settings.choices}
    if settings.regex is None:
        return True
    grammar = made_grammar(regex_grammar(settings.regex), (), vocabulary_of(model))
    return grammar.accepts(model.text.encode_words(text))


def shape_problems(spec: WorkflowSpec, models: Mapping[str, AgentModel]) -> Iterator[Problem]:
    """Yield the shapes that an agent's model cannot keep to, or that its budget has no room for.

    Args:
        spec: The workflow.
        models: The model of every agent.
    """
    for name, agent in spec.agents.items():
        settings = agent.generate
        if isinstance(models[name], Delegate):  # nothing is sampled
            continue
        if settings is None or not (settings.schema_ or settings.choices or settings.regex):
            continue
        kind = next(key for key in ("schema_", "choices", "regex") if getattr(settings, key))
        where = f"agents.{name}.generate.{kind.rstrip('_')}"
        try:
            shape = shape_of(settings, models[name])
            least = _least(shape)
        except ModelSupportError as error:
            yield Problem(error.found, where, error.expected, error.fix)
            continue
        except ValueError as error:
            yield Problem(f"llguidance refuses it: {error}", where, "a simpler shape")
            continue
        if least > settings.max_new_tokens:
            yield Problem(
                f"an answer of '{name}' takes {least} tokens and more",
                where,
                f"at most the {settings.max_new_tokens} of max_new_tokens",
                f"raise max_new_tokens to {2 * least} or more",
            )


def _least(shape: Shape) -> int:
    """Tokens of an answer that the budget must have room for."""
    if shape.choices:
        return max(map(len, shape.choices))
    grammar = shape.grammar
    assert isinstance(grammar, ShapeGrammar)
    return grammar.least
