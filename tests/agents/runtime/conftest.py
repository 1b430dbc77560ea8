"""What the tests of runs share."""

from collections.abc import Iterator

import pytest
from flows import Pair, own_cache, sibling

from unspoken.agents import LocalModel
from unspoken.agents.testing import tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A model, and one that differs in one weight."""
    with own_cache(tmp_path_factory.mktemp("cache")):
        base = tiny_model()
        yield base, sibling(base)


@pytest.fixture(scope="module")
def model(models: Pair) -> LocalModel:
    return models[0]
