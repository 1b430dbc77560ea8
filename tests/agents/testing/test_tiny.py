"""Tiny models in memory, and the fake bridge between them."""

from dataclasses import replace

import pytest

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.testing import FakeBridge, tiny_model, tiny_tokenizer
from unspoken.agents.testing.bridge import SHOWN
from unspoken.channels import IdentityMismatch, ProjectedCacheChannel


def two_readers(one: LocalModel, other: LocalModel) -> Workflow:
    reader = Agent("reader", one, prompt="{{ inputs.document }}", generate=None)
    solver = Agent("solver", other, prompt="what of it?", generate={"max_new_tokens": 4})
    return Workflow("two", [reader, solver])


def test_a_seed_is_a_model() -> None:
    """One seed gives one model, another a model of the same base, a family another base."""
    one, again, tuned = tiny_model(), tiny_model(0), tiny_model(1)
    assert one.identity == again.identity
    assert one.identity.differing(tuned.identity) == "weights"
    assert one.identity.config == tuned.identity.config
    gemma = tiny_model(family="gemma3", tokenizer=tiny_tokenizer((" the", "ing")))
    assert gemma.identity.config != one.identity.config
    assert gemma.identity.tokenizer != one.identity.tokenizer
    assert len(tiny_model(num_hidden_layers=3).geometry.layers) == 3


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_next", "deepseek_v3"])
def test_a_cache_is_handed_over(family: str) -> None:
    """A tiny model's state is real: text writes the same."""
    model = tiny_model(family=family)  # type: ignore[arg-type]
    texts = []
    for channel in ("auto", "text"):
        result = two_readers(model, model).connect("reader", "solver", channel).run(document="a b")
        texts.append(result["solver"].text)
        (edge,) = result.report.edges
        assert edge.mode == ("continuation" if channel == "auto" else "text")
        assert (edge.reused > 0) == (channel == "auto")
    assert texts[0] == texts[1]


def test_a_fake_bridge_carries_between_two_models() -> None:
    """It writes what text writes, claims what it is told to, and refuses other models."""
    one, two = tiny_model(), tiny_model(family="gemma3")
    bridge = FakeBridge(one, two, replace(SHOWN, message_kept=0.7))
    result = (
        two_readers(one, two)
        .connect("reader", "solver", ProjectedCacheChannel(bridge), min_retention=0.6)
        .run(document="the words of a document")
    )
    assert result.report.edges[0].mode == "projected" and bridge.asked
    words = two_readers(one, two).connect("reader", "solver", "text")
    assert result["solver"].text == words.run(document="the words of a document")["solver"].text
    refused = two_readers(one, two).connect(
        "reader", "solver", ProjectedCacheChannel(bridge), min_retention=0.8
    )
    assert refused.plan().edges[0].mode == "text"
    with pytest.raises(IdentityMismatch) as caught:
        bridge.check(two, two)
    assert caught.value.field == "weights" and caught.value.fix
