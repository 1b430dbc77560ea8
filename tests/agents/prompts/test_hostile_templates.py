"""Templates of strangers: whatever one does, it takes little time and little memory."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import hostile_templates
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unspoken.agents.prompts.jinja import references, render, render_parts
from unspoken.agents.prompts.lexer import scan
from unspoken.agents.prompts.sandbox import FUEL_OF_CHILD, TextRef, is_plain
from unspoken.channels.errors import TemplateError

SECONDS, MEGABYTES = 4, 200
"""What none may reach: on a usual processor a second is the most that any takes, and what fills
memory, such as a list of tokens, slows down by more than the loop that a processor is judged by.
"""


@pytest.fixture(scope="module")
def used() -> dict[str, dict[str, float]]:
    """What checking and rendering each takes: seconds of the processor, megabytes."""
    script = [sys.executable, hostile_templates.__file__]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("name", hostile_templates.HOSTILE)
def test_a_template_is_bounded_in_time_and_memory(
    name: str, used: dict[str, dict[str, float]]
) -> None:
    """A process that checks and renders it survives, and needs no more than any template may."""
    row = used[name]
    assert row["seconds"] <= SECONDS * row["slowness"]
    assert row["megabytes"] <= MEGABYTES


_ATOMS = st.sampled_from(["x", "y", "inputs.a", "1", "'ab'", "[x, x]", "(x, y)", "{'k': x}", "[]"])
_FILTERS = st.sampled_from(
    ["upper", "list", "join", "batch(2)", "tojson", "string", "length", "replace('a',x)", "e"]
)


@st.composite
def _expressions(draw: st.DrawFn) -> str:
    left = draw(_ATOMS)
    for _ in range(draw(st.integers(0, 3))):
        operator = draw(st.sampled_from(["+", "~", "*", "==", "<", "in", "and", "or", "|"]))
        right = draw(_FILTERS) if operator == "|" else draw(_ATOMS)
        left = f"({left} {operator} {right})"
    return left


@st.composite
def _templates(draw: st.DrawFn, depth: int = 2) -> str:
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["print", "set", "for", "if", "words"]))
        inner = draw(_templates(depth - 1)) if depth else "-"
        expression = draw(_expressions())
        parts.append(
            {
                "print": f"{{{{ {expression} }}}}",
                "set": f"{{% set x = {expression} %}}",
                "for": f"{{% for y in {expression} %}}{inner}{{% endfor %}}",
                "if": f"{{% if {expression} %}}{inner}{{% endif %}}",
                "words": "words {",
            }[kind]
        )
    return "".join(parts)


@settings(max_examples=40)
@given(_templates())
def test_any_template_is_text_or_an_error(template: str) -> None:
    """Nothing but words or a TemplateError comes of a template, soon."""
    with suppress(TemplateError):
        assert isinstance(render(template, {"inputs": {"a": "ab"}, "x": [1], "y": "z"}), str)


_WORDS = st.sampled_from(["a", "b\n", " ", "{", "}", "}}", "%}", "#}", "{ {", "'", "-", "é"])
_PIECES = st.one_of(  # as it is written, as it is printed, what of that is words
    _WORDS.map(lambda words: (words, words, words)),
    _WORDS.map(lambda words: (f"{{{{ {words!r} }}}}", words, "")),
    _WORDS.map(lambda words: (f"{{% raw %}}{words}{{{{ {{% endraw %}}",) + 2 * (f"{words}{{{{ ",)),
    _WORDS.map(lambda words: (f"{{# {words.replace('#}', '')} #}}", "", "")),
    st.just(("{{ {'k': {'v': 1}}.k.v }}", "1", "")),
)


@given(st.lists(_PIECES, max_size=6))
def test_a_template_is_cut_as_the_engine_reads_it(pieces: list[tuple[str, str, str]]) -> None:
    """Words, strings, raw text and comments end where the engine ends them."""
    template, printed, words = (" ".join(piece[index] for piece in pieces) for index in range(3))
    assert render(template, {}) == printed
    assert "".join(tag.text for tag in scan(template) if not tag.opener) == words


def test_running_out_of_steps_is_told_with_the_bound() -> None:
    """The error names how many steps a template may take."""
    with pytest.raises(TemplateError, match=f"more than {FUEL_OF_CHILD:,} steps"):
        render("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", {})
    with pytest.raises(TemplateError, match="more than 1,000,000 steps"):
        render("{{ inputs.text }}" * 99, {"inputs": {"text": "x" * 1_000_000}})


def test_running_out_of_memory_is_told_with_the_bound() -> None:
    """So is a template that the steps allow and that writes too much."""
    with pytest.raises(TemplateError, match=r"more than 0.75 s or \d+ MB"):
        render("{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}", {})


def test_a_prompt_with_a_long_text_takes_few_steps() -> None:
    """Two megabytes of words, changed and printed, stay far inside the bound."""
    text = "the quick brown fox " * 100_000
    template = "{{ inputs.text | upper }}{{ inputs.text | replace('fox', 'dog') | trim }}"
    assert len(render(template, {"inputs": {"text": text}})) == 2 * len(text) - 1
    lines = "{% for line in inputs.text.split('fox ') %}{{ loop.index }}. {{ line }}\n{% endfor %}"
    assert len(render(lines, {"inputs": {"text": text}})) > len(text) // 2


@pytest.mark.parametrize(
    ("template", "plain"),
    [
        ("Read {{ reader.text | trim }}: {% if turn > 1 %}again{% endif %}", True),
        ("'no' in {{ 'a'.lower() }} {{ ['a', 'b'] }}", True),
        ("{% for x in inputs.rows %}{{ x }}{% endfor %}", False),
        ("{% set x = [1] %}", False),
        ("{{ 'a' * 3 }}", False),
        ("{{ dict(a=1) }}", False),
        ("{{ inputs.rows | batch(2) }}", False),
        ("{{ inputs.rows.append(1) }}", False),
    ],
)
def test_only_templates_without_loops_and_new_values_are_rendered_here(
    template: str, plain: bool
) -> None:
    """All others go to a process of their own."""
    assert is_plain(scan(template)) == plain


def test_a_loop_keeps_messages_apart_too() -> None:
    """A template that another process renders knows whose text is whose."""
    context = {"a": {"text": TextRef("same", "a")}, "b": {"text": TextRef("same", "b")}}
    parts = render_parts("{{ b.text }}{% for x in [1] %}{{ a.text }}{% endfor %}", context)
    assert [part.agent for part in parts if isinstance(part, TextRef)] == ["b", "a"]


def test_a_template_cannot_change_what_it_is_given() -> None:
    """It reads copies, in plain data."""
    context = {"inputs": {"rows": [1]}, "item": Path("/etc")}
    assert render("{% for x in inputs.rows %}{{ x }}{% endfor %}{{ item }}", context) == "1/etc"
    with pytest.raises(TemplateError, match="No method named 'append'"):
        render("{{ inputs.rows.append(2) }}", context)
    with pytest.raises(TemplateError, match="No method named 'read_text'"):
        render("{{ item.read_text() }}", context)
    assert context["inputs"] == {"rows": [1]}


def test_names_in_slices_are_read_too() -> None:
    """The engine's own list of free names leaves them out."""
    (read,) = references("{{ reader.text[:7] }}")
    assert (read.root, read.attribute) == ("reader", "text")
