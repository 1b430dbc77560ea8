"""What the tests of runs share."""

from collections.abc import Iterator

import pytest
from flows import own_cache, sibling, tiny_model

from unspoken.agents import LocalModel


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalModel, LocalModel]]:
    """A model, and one that differs in one weight."""
    folder = tmp_path_factory.mktemp("models")
    with own_cache(folder / "cache"):
        base = tiny_model(folder / "one")
        yield base, sibling(base, folder / "other")


@pytest.fixture(scope="module")
def model(models: tuple[LocalModel, LocalModel]) -> LocalModel:
    return models[0]
