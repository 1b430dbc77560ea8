"""A model's own chat template: rendered as transformers does, by a process that has bounds."""

import pytest
from chat_templates import TEMPLATES

from unspoken.agents.prompts.chat_renderer import ChatRenderer
from unspoken.agents.prompts.chat_template import template_of
from unspoken.agents.prompts.tokenizer import TextTokenizer
from unspoken.agents.testing.tokenizer import tiny_tokenizer
from unspoken.channels.errors import ModelSupportError, TemplateError

SHAPES = (["user"], ["user", "assistant", "user"], ["system", "user"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_writes_what_transformers_writes(name: str) -> None:
    """Word for word, or both refuse; and minijinja writes it too."""
    tokenizer = tiny_tokenizer(chat_template=TEMPLATES[name])
    renderer = ChatRenderer(TEMPLATES[name], tokenizer.special_tokens_map)
    for roles in SHAPES:
        turns = [{"role": role, "content": f" é {number}\n"} for number, role in enumerate(roles)]
        try:
            expected = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # somebody's own way to refuse
            with pytest.raises(TemplateError):
                renderer(turns, True)
        else:
            assert renderer(turns, True) == expected
    assert not renderer.differs


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 8 }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}"
        "{% endfor %}{{ ns.x }}",
        "{{ 9 ** (9 ** 9) }}",
    ],
)
def test_a_template_that_takes_too_much_is_refused(source: str) -> None:
    """The error says so, and the next template is rendered as ever."""
    with pytest.raises(ModelSupportError, match="1 s or 128 MB"):
        ChatRenderer(source, {})([{"role": "user", "content": "x"}], False)
    assert ChatRenderer("{{ messages[0]['content'] }}", {})([{"content": "x"}], False) == "x"


def test_a_model_with_such_a_template_is_refused() -> None:
    """It is not taken for one whose template cannot be read."""
    source = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ModelSupportError, match="1 s or 128 MB"):
        template_of(TextTokenizer(tiny_tokenizer(chat_template=source), "t"))


def test_a_template_that_minijinja_renders_otherwise_is_noted() -> None:
    """transformers' words count, and the plan says so."""
    source = (
        "{% for message in messages %}<{{ message['role'] }}>{{ '%s' % message['content'] }}\n"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    template = template_of(TextTokenizer(tiny_tokenizer(chat_template=source), "t"))
    assert template.wrappers["user"][0] == "<user>"
    assert any("minijinja" in note for note in template.notes)


def test_a_template_opens_no_file() -> None:
    """What it could reach it may not open: its process has no file left to open."""
    source = (
        "{% set g = cycler.__init__.__globals__ %}{{ g.os.open('/etc/hostname', 0) }}{{ messages }}"
    )
    with pytest.raises(TemplateError):
        ChatRenderer(source, {})([{"role": "user", "content": "x"}], False)
