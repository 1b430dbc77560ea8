"""What the tests of plans share."""

from collections.abc import Iterator

import pytest
from chat_templates import TEMPLATES
from flows import own_cache, sibling, tiny_model
from tiny import tiny_tokenizer

from unspoken.agents import LocalModel


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LocalModel]]:
    """A model by template; `other` differs from chatml in one weight, `third` in all."""
    folder = tmp_path_factory.mktemp("models")
    with own_cache(folder / "cache"):
        chatml = tiny_model(folder / "chatml")
        by_template = {
            name: tiny_model(folder / name, tokenizer=tiny_tokenizer(chat_template=source))
            for name, source in (TEMPLATES | {"plain": None}).items()
        }
        others = {
            "other": sibling(chatml, folder / "other"),
            "third": tiny_model(folder / "third", 3),
        }
        yield {"chatml": chatml, **others, **by_template}
