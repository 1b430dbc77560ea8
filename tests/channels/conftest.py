"""What the tests of channels share."""

import pytest
from flows import own_cache, sibling, tiny_model
from tiny import tiny_gemma3, tiny_tokenizer

from unspoken.agents import LocalModel


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalModel]:
    """Three tokenizers, one on a model with sliding layers; and a fine-tune of the first."""
    folder = tmp_path_factory.mktemp("models")
    with own_cache(folder / "cache"):
        base = tiny_model(folder / "one")
        two = tiny_tokenizer((" reader", " document", "tion", " and"))
        three = tiny_tokenizer((" was", " key", "ment"))
        models = {
            "one": base,
            "tune": sibling(base, folder / "tune"),
            "two": tiny_model(folder / "two", 1, tokenizer=two, num_hidden_layers=3),
            "slides": LocalModel.load(str(tiny_gemma3(folder / "three", 2, tokenizer=three))),
        }
        assert len({model.identity for model in models.values()}) == 4
    return models
