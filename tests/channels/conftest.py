"""What the tests of channels share."""

import pytest
from flows import sibling

from unspoken.agents import LocalModel
from unspoken.agents.testing import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def models() -> dict[str, LocalModel]:
    """Three tokenizers, one on a model with sliding layers; and a fine-tune of the first."""
    base = tiny_model()
    two = tiny_tokenizer((" reader", " document", "tion", " and"))
    three = tiny_tokenizer((" was", " key", "ment"))
    models = {
        "one": base,
        "tune": sibling(base),
        "two": tiny_model(1, tokenizer=two, num_hidden_layers=3),
        "slides": tiny_model(2, family="gemma3", tokenizer=three),
    }
    for name, model in models.items():
        model.ref = f"owner/{name}"
    assert len({model.identity for model in models.values()}) == 4
    return models
