"""One of several texts: weighed as plain transformers weighs them."""

from typing import Any

import pytest
import torch
from hybrids import make_hybrid

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.testing import ScriptedModel, tiny_model, tiny_tokenizer
from unspoken.channels import AgentError

TEAMS = ("billing", "technical", "bill")


@pytest.fixture(scope="module")
def model() -> LocalModel:
    return tiny_model()


def router(model: Any, **generate: Any) -> Workflow:
    settings = {"choices": list(TEAMS), **generate}
    return Workflow("r", [Agent("router", model, prompt="{{ inputs.text }}", generate=settings)])


def weighed(model: LocalModel, text: str, choices: tuple[str, ...]) -> list[float]:
    """Shares of the choices' likelihoods, their ends counted, by plain transformers."""
    prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    ids = model.tokenizer(prompt)["input_ids"]
    logs = []
    for choice in choices:
        words = [*model.text.encode_words(choice), model.tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model.hf(torch.tensor([[*ids, *words]])).logits[0, len(ids) - 1 : -1]
        logs.append(logits.log_softmax(-1)[range(len(words)), words].sum())
    shares: list[float] = torch.stack(logs).softmax(0).tolist()
    return shares


def test_likelihoods_are_those_of_transformers(model: LocalModel) -> None:
    """Of the whole texts, with their ends where one begins another; the likeliest is written."""
    result = router(model).run(text="the key does not turn")
    report = result.report.agents["router"][0]
    assert report.likelihoods == result["router"].likelihoods
    assert result["router"].likelihoods is not None
    expected = dict(zip(TEAMS, weighed(model, "the key does not turn", TEAMS), strict=True))
    assert result["router"].likelihoods == pytest.approx(expected, abs=1e-5)
    assert result["router"].text == max(expected, key=lambda team: expected[team])
    assert report.finish == "stop"


def test_chance_chooses_as_often_as_the_likelihoods_say(model: LocalModel) -> None:
    """At a high temperature every choice comes; one seed always gives one choice."""
    texts = {
        router(model, temperature=1e6, seed=seed).run(text="x").outputs["router"]
        for seed in range(12)
    }
    assert texts == set(TEAMS)
    again = [router(model, temperature=1.0, seed=7).run(text="x").outputs for _ in range(2)]
    assert again[0] == again[1]


def test_a_reader_goes_on_from_a_choice_as_from_words(model: LocalModel) -> None:
    """The state of the written choice is the one of its tokens."""
    told = Agent("router", model, prompt="{{ inputs.text }}", generate={"choices": list(TEAMS)})
    helper = Agent("helper", model, prompt="Help.", generate={"max_new_tokens": 6})
    texts = {
        channel: Workflow("r", [told, helper])
        .connect(told, helper, channel=channel, share="context", repair="none")
        .run(text="the key")["helper"]
        .text
        for channel in ("text", "same_model_cache")
    }
    assert texts["text"] == texts["same_model_cache"]


def test_recurrent_layers_weigh_every_choice_from_the_same_place() -> None:
    """What one choice left in them is gone when the next is read."""
    model = make_hybrid("lfm2")
    first = router(model).run(text="the key")["router"].likelihoods
    turned = router(model, choices=list(reversed(TEAMS))).run(text="the key")["router"].likelihoods
    assert first == pytest.approx(turned, rel=1e-3)


def test_a_script_chooses_among_the_choices_alone() -> None:
    """A test whose script says what no run can say is told."""
    assert router(ScriptedModel({"router": "bill"})).run(text="x")["router"].text == "bill"
    with pytest.raises(AgentError, match="none of the choices"):
        router(ScriptedModel({"router": "biling"})).run(text="x")


def test_a_model_that_thinks_to_its_limit_still_chooses() -> None:
    """Its thoughts are ended in time; half of them are none of the choices."""
    thinks = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    model = tiny_model(tokenizer=tiny_tokenizer(chat_template=thinks))
    result = router(model, max_new_tokens=90).run(text="x")
    assert result["router"].text in TEAMS
    assert result.report.agents["router"][0].thought_tokens > 8


def test_half_of_a_match_is_no_answer() -> None:
    """A regex whose end is too far away to be known cannot be ended in time."""
    model = ScriptedModel({"a": "7" * 600})
    settings = {"regex": "[0-9]{600}", "max_new_tokens": 12}
    with pytest.raises(AgentError, match="not what its regex says"):
        Workflow("w", [Agent("a", model, prompt="x", generate=settings)]).run()
