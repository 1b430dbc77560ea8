"""Chat templates of real models, taken apart."""

from collections.abc import Callable, Mapping, Sequence

import pytest
from chat_templates import TEMPLATES
from tiny import CHATML, tiny_tokenizer

from unspoken.agents.prompts.chat_template import PLAIN_TEMPLATE, ChatTemplate, read_template

BOS, EOS = "<|im_start|>", "<|im_end|>"


def renderer(source: str) -> Callable[[Sequence[Mapping[str, str]], bool], str]:
    tokenizer = tiny_tokenizer(chat_template=source)
    return lambda turns, prompt: str(
        tokenizer.apply_chat_template(
            [dict(turn) for turn in turns], tokenize=False, add_generation_prompt=prompt
        )
    )


def parts(source: str, bos: str = "") -> ChatTemplate:
    template = read_template(renderer(source), bos=bos)
    assert template is not None
    return template


def test_chatml_is_taken_apart() -> None:
    """The simplest template has nothing unusual about it."""
    assert parts(CHATML) == ChatTemplate(
        opening="",
        system=("<|im_start|>system\n", "<|im_end|>\n"),
        wrappers={
            "user": ("<|im_start|>user\n", "<|im_end|>\n"),
            "assistant": ("<|im_start|>assistant\n", "<|im_end|>\n"),
        },
        first="<|im_start|>user\n",
        prompt="<|im_start|>assistant\n",
    )


def test_a_default_system_turn_is_the_opening() -> None:
    """SmolLM2's own system turn stands where no system prompt is given."""
    template = parts(TEMPLATES["smollm2"])
    assert template.opening == "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n"
    assert template.system == ("<|im_start|>system\n", "<|im_end|>\n")


def test_a_bos_of_the_template_opens_it_once() -> None:
    """Llama 3 writes its BOS itself, so the tokenizer's is not put before it."""
    template = parts(TEMPLATES["llama3"], bos=BOS)
    assert template.opening == BOS
    assert template.system == (f"{BOS}<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>")
    assert template.prompt == "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert not template.merges and not template.notes


def test_an_alternating_template_without_system_turn_is_noticed() -> None:
    """Gemma's turns are merged where it refuses two in a row, and the plan is told."""
    template = parts(TEMPLATES["gemma"], bos=BOS)
    assert template.merges and template.system is None
    assert template.opening == BOS
    assert template.wrappers["user"] == ("<start_of_turn>user\n", "<end_of_turn>\n")
    assert template.wrappers["assistant"] == ("<start_of_turn>model\n", "<end_of_turn>\n")
    assert template.prompt == "<start_of_turn>model\n"
    assert any("no two user turns" in note for note in template.notes)
    assert any("no system turn" in note for note in template.notes)


def test_a_template_without_generation_prompt_has_none() -> None:
    """Mistral asks for the answer with the end of the user's turn."""
    template = parts(TEMPLATES["mistral"], bos=BOS)
    assert template.wrappers == {"user": ("[INST] ", " [/INST]"), "assistant": ("", EOS)}
    assert template.prompt == "" and template.merges


def test_a_template_with_eos_at_each_turn_is_taken_apart() -> None:
    """Zephyr closes every turn with EOS and a newline."""
    template = parts(TEMPLATES["zephyr"])
    assert template.wrappers["assistant"] == ("<|assistant|>\n", f"{EOS}\n")
    assert template.prompt == "<|assistant|>\n" and not template.notes


def test_a_template_that_rewrites_earlier_turns_still_has_plain_wrappers() -> None:
    """Qwen3 puts an empty thought before the last answer only, and the plan notes it."""
    template = parts(TEMPLATES["qwen3"])
    assert template.wrappers["user"] == ("<|im_start|>user\n", "<|im_end|>\n")
    assert template.wrappers["assistant"] == ("<|im_start|>assistant\n", "<|im_end|>\n")
    assert template.prompt == "<|im_start|>assistant\n"
    assert any("opens an assistant turn differently" in note for note in template.notes)


def test_the_plain_template_separates_turns_by_empty_lines() -> None:
    """A base model's answer comes right after the prompt's words."""
    template = read_template(renderer(PLAIN_TEMPLATE), bos=BOS, plain=True)
    assert template is not None and template.plain
    assert template.opening == BOS
    assert template.first == "" and template.wrappers["user"] == ("\n\n", "")
    assert template.wrappers["assistant"] == ("", "") and template.prompt == ""


def test_a_template_that_refuses_even_one_user_turn_gives_nothing() -> None:
    """The caller then takes the plain template."""
    assert read_template(renderer("{{ raise_exception('no') }}")) is None
    assert read_template(renderer("fixed words")) is None


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        (name, roles)
        for name in TEMPLATES
        for roles in ("u", "uau", "uauau", *(() if name == "qwen3" else ("ua", "uaua")))
    ],
)
def test_the_parts_put_together_are_what_the_template_renders(name: str, roles: str) -> None:
    """Opening, wrappers and words give the rendered text of a conversation."""
    template = parts(TEMPLATES[name], bos="")
    names = {"u": "user", "a": "assistant"}
    turns = [{"role": names[role], "content": f"words {n}"} for n, role in enumerate(roles)]
    text = template.opening
    for index, turn in enumerate(turns):
        before, after = template.wrappers[turn["role"]]
        text += (before if index else template.first) + turn["content"] + after
    assert text == renderer(TEMPLATES[name])(turns, False)
