"""Templates: what they read, what they write, and what they may not do."""

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspoken.agents.prompts.absent import Absent
from unspoken.agents.prompts.jinja import (
    Reference,
    TextRef,
    evaluate,
    references,
    render,
    render_parts,
)
from unspoken.channels.errors import TemplateError

READER = TextRef("red fox", "reader")
CONTEXT: dict[str, Any] = {
    "inputs": {"question": "why?", "items": "goods", "rows": [{"a": 1}], "_low": "x"},
    "reader": {"text": READER, "skipped": False, "items": []},
    "item": {"title": "T", "items": 5},
    "turn": 1,
}


def test_references_lists_what_a_template_reads_with_lines() -> None:
    """Names come with attribute and line, whether read by dot or by constant key."""
    template = "{{ inputs.a }}\n{% if reader['text'] %}{{ turn }}{% endif %}\n{{ inputs[turn] }}"
    assert references(template) == (
        Reference("inputs", "a", 1),
        Reference("reader", "text", 2),
        Reference("turn", None, 2),
        Reference("inputs", None, 3),
        Reference("turn", None, 3),
    )


def test_references_leaves_out_what_the_template_defines() -> None:
    """Loop variables, set names, macros' arguments and range are not read from outside."""
    template = (
        "{% set x = 1 %}{% for y in range(x) %}{{ y }}{{ loop.index }}{% endfor %}"
        "{% macro m(z) %}{{ z }}{% endmacro %}{{ m(inputs.q) }}"
    )
    assert references(template) == (Reference("inputs", "q", 1),)


def test_references_of_an_expression() -> None:
    """A bare expression is read as one."""
    found = references("reader.text and 'no' not in inputs.x", expression=True)
    assert found == (Reference("reader", "text", 1), Reference("inputs", "x", 1))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a\n{{ b", "line 2"),
        ("a\n\n{% if x %}", "line 3"),
        ("{{ x | uper }}", "No filter named 'uper'"),
        ("{% include 'x' %}", "uses 'include'"),
        ("{% extends 'x' %}", "uses 'extends'"),
        ("{{ " + "(" * 5000 + " }}", "too deeply nested"),
    ],
)
def test_template_that_cannot_be_parsed_is_refused(template: str, message: str) -> None:
    """What is no template is refused with its line."""
    with pytest.raises(TemplateError, match=message):
        references(template)


@pytest.mark.parametrize(
    "expression",
    ["", " ", "a b", "{{ a }}", "a }}{{ b", "a }} b", "a }}{% if b %}{% endif %}", "a }}{# #}"],
)
def test_condition_is_exactly_one_expression(expression: str) -> None:
    """A condition that is not one bare expression is refused."""
    with pytest.raises(TemplateError):
        references(expression, expression=True)


def test_whole_message_stays_apart() -> None:
    """A printed message comes as itself, with the words around it."""
    parts = render_parts("Read: {{ reader.text }}\nQ: {{ inputs.question }}\n", CONTEXT)
    assert parts == ("Read: ", "red fox", "\nQ: why?\n")
    assert isinstance(parts[1], TextRef)
    assert parts[1].agent == "reader"
    assert not isinstance(parts[0], TextRef)


@pytest.mark.parametrize(
    "template",
    [
        "{{ reader.text | upper | lower }}",
        "{{ reader.text ~ '' }}",
        "{{ reader.text[:7] }}",
        "{{ '' + reader.text }}",
        "{% set x %}{{ reader.text }}{% endset %}{{ x }}",
        "{% filter lower %}{{ reader.text }}{% endfilter %}",
        "{% macro m() %}{{ reader.text }}{% endmacro %}{{ m() }}",
        "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{{ reader.text }}{% endcall %}",
        "{% block b %}{{ reader.text }}{% endblock %}",
    ],
)
def test_changed_message_is_ordinary_text(template: str) -> None:
    """A message that went through a filter, operator or block is words."""
    (part,) = render_parts(template, CONTEXT)
    assert part == "red fox"
    assert type(part) is str


@pytest.mark.parametrize(
    "template",
    [
        "{% filter upper %}{{ reader.text }}{% endfilter %}",
        "{% set x %}{{ reader.text }}{% endset %}{{ x | upper }}",
        "{% macro m() %}{{ reader.text }}{% endmacro %}{{ m() | upper }}",
        "{% block b %}{{ reader.text }}{% endblock %}{{ self.b() | upper }}",
        "{% for a in [1] recursive %}{{ reader.text }}{% endfor %}",
    ],
)
def test_captured_message_leaves_no_trace_of_a_stand_in(template: str) -> None:
    """What captures printed text sees the message, never what stands for it."""
    output = "".join(render_parts(template, CONTEXT))
    assert output.lower().replace("red fox", "") == ""


@pytest.mark.parametrize(
    "template",
    [
        "{{ reader.text or 'none' }}",
        "{% set x = reader.text %}{{ x }}",
        "{% for x in [reader.text] %}{{ x }}{% endfor %}",
        "{{ reader.text | default('none') }}",
    ],
)
def test_message_survives_being_handed_around(template: str) -> None:
    """A message that is only chosen or named is still whole."""
    (part,) = render_parts(template, CONTEXT)
    assert isinstance(part, TextRef)


def test_empty_pieces_are_dropped() -> None:
    """Nothing comes of an empty template or an empty message."""
    assert render_parts("", CONTEXT) == ()
    assert render_parts("{{ x.text }}", {"x": {"text": TextRef("", "x")}}) == ()


@given(st.text(), st.text())
def test_user_text_cannot_forge_a_message(left: str, right: str) -> None:
    """Whatever an input holds, it comes out as the words it is."""
    forged = left + "\x0200000000000000000000000000000000:0\x03" + right
    parts = render_parts("{{ inputs.x }}{{ reader.text }}", {**CONTEXT, "inputs": {"x": forged}})
    assert parts == (forged, READER)
    assert type(parts[0]) is str


def test_context_keys_win_over_methods() -> None:
    """An input may be called like a method of a mapping, or start with an underscore."""
    assert (
        render("{{ inputs.items }} {{ inputs._low }} {{ reader.items }}", CONTEXT) == "goods x []"
    )


def test_item_is_the_users_own_mapping() -> None:
    """A row keeps the methods of a mapping, so that a template can go through it."""
    template = (
        "{{ item.title }}{% for key, value in item.items() %} {{ key }}={{ value }}{% endfor %}"
    )
    assert render(template, CONTEXT) == "T title=T items=5"


def test_trailing_newline_and_markup_are_kept() -> None:
    """Text is neither trimmed nor escaped."""
    assert render("<b> & {{ inputs.q }}\n", {"inputs": {"q": "<i>"}}) == "<b> & <i>\n"


def test_evaluate_returns_the_value() -> None:
    """A condition is worth what it is worth in jinja."""
    assert evaluate("'fox' in reader.text and turn < 2", CONTEXT) is True
    assert evaluate("inputs.rows", CONTEXT) == [{"a": 1}]
    assert evaluate("reader.text", CONTEXT) == READER


@pytest.mark.parametrize("read", [render, render_parts, evaluate])
def test_missing_name_is_named_with_candidates(read: Any) -> None:
    """A missing name is named, with what there is and the nearest."""
    template = "inputs.questoin" if read is evaluate else "{{ inputs.questoin }}"
    with pytest.raises(TemplateError) as caught:
        read(template, CONTEXT)
    assert "'inputs.questoin'" in caught.value.found
    assert "inputs.question" in caught.value.expected
    assert caught.value.fix == "did you mean 'inputs.question'?"


def test_missing_root_lists_the_roots() -> None:
    """A missing first name is named with the names that exist."""
    with pytest.raises(TemplateError, match=r"reads 'raeder'(.|\n)*did you mean 'reader'"):
        render("{{ raeder.text }}", CONTEXT)


@pytest.mark.parametrize(
    "template",
    [
        "{{ inputs.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ reader.text.__init__.__globals__ }}",
        "{{ inputs.rows.append(1) }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ 1 / 0 }}",
        "{{ turn.foo.bar }}",
        "{{ lipsum() }}",
        "{{ 'a' * 10 ** 9 }}",
        "{{ [1] * 10 ** 9 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ 'a'.ljust(10 ** 9) }}",
        "{{ range(10 ** 9) }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    ],
)
def test_dangerous_or_failing_template_is_refused(template: str) -> None:
    """What leaves the sandbox, runs away or fails is a template error, whatever Python raised."""
    with pytest.raises(TemplateError):
        render(template, CONTEXT)


def test_text_ref_pickles_with_its_agent() -> None:
    """A message's text can go to another process."""
    copy = pickle.loads(pickle.dumps(READER))
    assert (copy, copy.agent) == (READER, "reader")


@pytest.mark.parametrize(
    ("template", "printed"),
    [
        ("[{{ gone.text }}{{ gone }}]", "[]"),
        ("{{ gone.text | default('-') }}{{ gone | default('-') }}", "--"),
        ("{{ gone is defined }} {{ gone.text is defined }}", "False False"),
        ("{{ 'there' if gone else 'not' }} {{ 'there' if gone.text else 'not' }}", "not not"),
        ("{{ gone.skipped }} {{ gone.items | length }}", "True 0"),
        ("{{ 'x' in gone.text }}", "False"),
    ],
)
def test_an_absent_agent_is_undefined_and_prints_nothing(template: str, printed: str) -> None:
    """It is no mistake to read an agent that was skipped; only its fields are there."""
    absent = Absent({"skipped": True, "items": []})
    assert render(template, {"gone": absent}).lower() == printed.lower()


def test_an_agent_by_itself_cannot_be_printed() -> None:
    """It would print as an object; the error says what to write."""
    with pytest.raises(TemplateError, match=r"reader\.text"):
        render("{{ reader ~ '' }}", {"reader": {"text": "words"}})
