"""Contexts and messages with few words or none, or with the same message twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flows import own_cache
from tiny import tiny_llama
from tokenizers.processors import TemplateProcessing

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.testing import tiny_model, tiny_tokenizer
from unspoken.channels import SameModelCacheChannel, TextChannel
from unspoken.channels.errors import AgentError, ContextLengthError, InputError

FEW = {"max_new_tokens": 4}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path) -> Iterator[None]:
    with own_cache(tmp_path):
        yield


@pytest.fixture(scope="module")
def bare() -> LocalModel:
    """A model without a chat template, whose tokenizer starts no context."""
    return tiny_model(tokenizer=tiny_tokenizer(chat_template=None))


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


@pytest.mark.parametrize("generate", [FEW, None])
def test_an_agent_with_nothing_to_read_is_named(
    bare: LocalModel, generate: dict[str, int] | None
) -> None:
    """A prompt that renders to nothing is an error of the input where no token starts a context."""
    agents = [Agent("a", bare, prompt="{{ inputs.x }}", generate=generate)]
    if generate is None:
        agents.append(Agent("b", bare, prompt="{{ a.text }} x", generate=FEW))
    flow = Workflow("w", agents, inputs={"x": "text"})
    if generate is None:
        flow.connect("a", "b")
    with pytest.raises(AgentError, match="agent 'a' failed: the context is empty") as caught:
        flow.run(x="")
    assert caught.value.agent == "a" and caught.value.exit_code == 2
    assert "write words" in caught.value.fix


def test_a_model_that_starts_a_context_writes_from_nothing() -> None:
    """A beginning token is something to go on from."""
    tokenizer = tiny_tokenizer(chat_template=None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    model = tiny_model(tokenizer=tokenizer)
    flow = Workflow("w", [Agent("a", model, prompt="{{ inputs.x }}", generate=FEW)])
    assert flow.run(x="").report.agents["a"][0].prompt_tokens == 1


@pytest.mark.parametrize("prompt", ["{{ reader.text }}", "x{{ reader.text }}", "next"])
@pytest.mark.parametrize("document", ["", " ", "the reader"])
def test_messages_of_few_words_stand_where_text_would(
    model: LocalModel, document: str, prompt: str
) -> None:
    """By cache a receiver reads the very tokens that it reads by text, however few."""
    counts = []
    for channel in (TextChannel(), SameModelCacheChannel()):
        agents = [
            Agent("reader", model, prompt="{{ inputs.document }}", generate=None),
            Agent("solver", model, prompt=prompt, generate=FEW),
        ]
        flow = Workflow("w", agents).connect(*agents, channel)
        result = flow.run(document=document)
        turn = result.report.agents["solver"][0]
        counts.append((turn.prompt_tokens, result["solver"].text))
    assert counts[0][0] == counts[1][0]


def test_a_message_that_stands_twice_is_carried_twice(model: LocalModel) -> None:
    """Each place where a prompt prints a message has its tokens."""
    turns = []
    for prompt in ("x {{ reader.text }} y", "x {{ reader.text }} y {{ reader.text }} z"):
        agents = [
            Agent("reader", model, prompt="the reader and the value", generate=None),
            Agent("solver", model, prompt=prompt, generate=FEW),
        ]
        flow = Workflow("w", agents).connect(*agents, SameModelCacheChannel())
        turns.append(flow.run().report.agents["solver"][0])
    one, two = turns
    assert two.reused_tokens >= 2 * one.reused_tokens > 0


def test_a_message_without_a_token_is_refused(bare: LocalModel, model: LocalModel) -> None:
    """`message` needs something to compute, of the template if not of the text."""
    with pytest.raises(InputError, match="no token"):
        bare.message("")
    empty = model.message("")
    assert empty.text == "" and empty.state is not None
    assert empty.state.stop == len(empty.context)


def test_a_message_past_the_models_context_is_refused(model: LocalModel) -> None:
    """It says how many tokens it has, and how many there may be."""
    with pytest.raises(ContextLengthError, match="tokens") as caught:
        model.message("the reader " * model.max_positions)
    assert str(model.max_positions) in caught.value.expected


def test_arguments_of_the_chat_template_come_from_the_workflow_file(tmp_path: Path) -> None:
    """Two models of one folder share their weights, and each has its own prompt."""
    source = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' + ('' if enable_thinking else 'no ') }}{% endif %}"
    )
    folder = tiny_llama(tmp_path / "m", tokenizer=tiny_tokenizer(chat_template=source))
    file = tmp_path / "flow.yaml"
    file.write_text(
        f"""
name: w
models:
  thinks: {{ref: {folder}, template: {{enable_thinking: true}}}}
  answers: {folder}
agents:
  a: {{model: thinks, prompt: x, generate: {{max_new_tokens: 2}}}}
  b: {{model: answers, prompt: x, generate: {{max_new_tokens: 2}}}}
"""
    )
    flow = Workflow.from_yaml(file)
    flow.plan()
    models = flow.models
    thinks, answers = models["thinks"], models["answers"]
    assert isinstance(thinks, LocalModel) and isinstance(answers, LocalModel)
    assert thinks.weights is answers.weights and thinks.identity == answers.identity
    assert thinks.template.prompt == "<|im_start|>assistant\n"
    assert answers.template.prompt == "<|im_start|>assistant\nno "
    again = Workflow("w", [Agent("a", thinks, prompt="x", generate=FEW)])
    assert next(iter(again.spec.models.values())).template == {"enable_thinking": True}


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "tokenize", "strftime_now"])
def test_what_the_template_is_given_anyway_is_no_argument(model: LocalModel, name: str) -> None:
    """Turns, and what asks for the next one, are not a user's to give."""
    with pytest.raises(InputError, match=name):
        model.with_template({name: True})
