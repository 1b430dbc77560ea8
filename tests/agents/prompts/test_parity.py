"""Composed turns have the ids of the chat template, or the template's notes say what differs."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from chat_templates import MARKERS, TEMPLATES
from tokenizer_kinds import KINDS, made
from transformers import PreTrainedTokenizerFast

from unspoken.agents.prompts.context import ChatTurn, ContextBuilder, Quote
from unspoken.agents.prompts.parity import context_builder_of
from unspoken.agents.prompts.tokenizer import TextTokenizer
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.message import Message

Said = Sequence[tuple[str, str]]

TALKS: Mapping[str, tuple[str | None, Said]] = {
    "one turn": (None, [("user", "Who wrote it?")]),
    "system": ("Be short.", [("user", "Who wrote it?")]),
    "answered": (None, [("user", "Who?"), ("assistant", "Ada, in 1887."), ("user", "When?")]),
    "all": ("Be short.\n", [("user", " Who?"), ("assistant", "Ada.\n"), ("user", "When?\n")]),
    "space at the ends": (None, [("user", "  When was it?\n")]),
    "lines": (None, [("user", "\n\n# Notes\n\n- the reader\n- 漢字 é🙂\n\n")]),
    "empty": (None, [("user", "")]),
    "space alone": (None, [("user", " \n ")]),
    "two turns of one role": (None, [("user", "Who?"), ("user", "When?")]),
}
FLAGS: dict[str, dict[str, bool]] = {
    "special": {},
    "rstrip": {"rstrip": True},
    "lstrip": {"lstrip": True},
    "not special": {"special": False, "normalized": False},
}
USUAL = {"deepseek": "byte-level", "gemma3": "gemma", "gemma": "gemma", "llama2": "llama2"}
USUAL |= {"mistral": "llama2", "phi3": "llama2", "zephyr": "llama2"}


def built(
    name: str, kind: str, flags: Mapping[str, bool] | None = None, **arguments: Any
) -> tuple[PreTrainedTokenizerFast, ContextBuilder]:
    tokenizer = made(kind, MARKERS[name], template=TEMPLATES[name], **(flags or {}))
    if not tokenizer.bos_token:  # templates print both
        tokenizer.bos_token, tokenizer.eos_token = MARKERS[name][0], MARKERS[name][-1]
    return tokenizer, context_builder_of(TextTokenizer(tokenizer, "digest"), arguments)


def rendered(
    tokenizer: PreTrainedTokenizerFast, said: Said, system: str | None
) -> tuple[int, ...] | None:
    """The ids of transformers itself; None where the template refuses the conversation."""
    turns = [{"role": "system", "content": system}] if system is not None else []
    turns += [{"role": role, "content": words} for role, words in said]
    try:
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    except Exception:
        return None
    return tuple(ids)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_have_the_ids_of_the_template(name: str, kind: str, flags: str) -> None:
    """System prompts, several turns, space at the ends, empty words: all as transformers has them.

    A BERT-like tokenizer goes on with a word where a turn of another text follows it at once.
    """
    tokenizer, of = built(name, kind, FLAGS[flags])
    for talk, (system, said) in TALKS.items():
        if (expected := rendered(tokenizer, said, system)) is None:
            continue
        turns = [ChatTurn(role, (words,)) for role, words in said]
        ids = of.compose(turns, system=system).ids + of.ask()
        if kind == "wordpiece" and system is not None and of.template.system is None:
            continue
        assert ids == expected, talk


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_message_after_a_space_brings_no_second_one(name: str) -> None:
    """Words around a message are tokenised as if the whole were one text."""
    tokenizer, of = built(name, USUAL.get(name, "byte-level"))
    said = of.compose([ChatTurn("user", ("the reader",))])
    identity = ModelIdentity("w", "c", "digest")
    message = Message(
        sharer="reader",
        segments=said.segments[-1:],
        whole=False,
        context=said.ids,
        identity=identity,
    )
    quote = Quote(message, message.segments[0])
    between = " " if of.text.around(quote.segment.words, "the reader")[0] == " " else "\n"
    pieces = (f"Say:{between}", quote, " and more, Ada.")
    context = of.compose([ChatTurn("user", pieces)])
    text = f"Say:{between}the reader and more, Ada."
    assert context.ids + of.ask() == rendered(tokenizer, [("user", text)], None)
    (span,) = context.spans(message)
    assert context.ids[span.at : span.at + span.length] == quote.segment.words


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answer_is_closed_as_the_template_closes_it(name: str) -> None:
    """Ids sampled after the prompt, and those that close the turn, are the template's."""
    _, of = built(name, USUAL.get(name, "byte-level"))
    said = [("user", "Who?"), ("assistant", "Ada")]
    context = of.compose([ChatTurn(role, (words,)) for role, words in said])
    answer = context.segments[-1]
    assert answer.ids[answer.content[1] :] == of.close()


def test_what_differs_is_said() -> None:
    """A template that writes another case of the words is named, with what differs."""
    source = TEMPLATES["smollm2"].replace(
        "message['content']", "message['content'] | replace('# ', '')"
    )
    tokenizer = made("byte-level", MARKERS["smollm2"], template=source)
    (note,) = context_builder_of(TextTokenizer(tokenizer, "digest")).template.notes
    assert "words in lines" in note and "one turn" not in note


def test_a_template_whose_turns_end_in_plain_text_is_said_to() -> None:
    """Where no marker ends a turn, words can spell what does."""
    _, of = built("llama2", "llama2")
    assert any("plain text" in note for note in of.template.notes)
    assert not built("smollm2", "byte-level")[1].template.notes


def test_a_template_that_drops_thoughts_is_said_to() -> None:
    """What the assistant thought in an earlier turn is kept here, and the plan says so."""
    _, of = built("deepseek", "byte-level")
    assert any("thoughts" in note for note in of.template.notes)


def test_a_date_is_that_of_the_loading_and_said() -> None:
    """A template that writes the time writes one time for all that a model reads."""
    source = "{{ strftime_now('%H:%M:%S.%f') + '\n' }}" + TEMPLATES["smollm2"]
    tokenizer = made("byte-level", MARKERS["smollm2"], template=source)
    of = context_builder_of(TextTokenizer(tokenizer, "digest"))
    again = context_builder_of(of.text)
    assert of.opening(None).ids == again.opening(None).ids
    assert any("date" in note for note in of.template.notes)


def test_arguments_reach_the_template() -> None:
    """What a template asks besides the turns is given by name."""
    source = TEMPLATES["smollm2"].replace(
        "{{ '<|im_start|>assistant\n' }}",
        "{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is false %}{{ '<think></think>' }}{% endif %}",
    )
    tokenizer = made("byte-level", MARKERS["smollm2"], template=source)
    text = TextTokenizer(tokenizer, "digest")
    assert "<think>" not in context_builder_of(text).template.prompt
    quick = context_builder_of(text, {"enable_thinking": False})
    assert quick.template.prompt.endswith("<think></think>")
