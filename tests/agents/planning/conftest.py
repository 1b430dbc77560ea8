"""What the tests of plans share."""

from collections.abc import Iterator

import pytest
from chat_templates import TEMPLATES
from flows import own_cache, sibling

from unspoken.agents import LocalModel
from unspoken.agents.testing import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LocalModel]]:
    """A model by template; `other` differs from chatml in one weight, `third` in all."""
    with own_cache(tmp_path_factory.mktemp("cache")):
        chatml = tiny_model()
        models = {
            name: tiny_model(tokenizer=tiny_tokenizer(chat_template=source))
            for name, source in (TEMPLATES | {"plain": None}).items()
        }
        models |= {"chatml": chatml, "other": sibling(chatml), "third": tiny_model(3)}
        for name, model in models.items():
            model.ref = f"owner/{name}"  # plans name models by reference
        yield models
