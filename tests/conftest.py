"""What all tests share."""

import pytest

from unspoken.agents.models.model import LocalModel


@pytest.fixture(scope="session")
def smollm2() -> LocalModel:
    """The embedded SmolLM2, prepared on first use."""
    return LocalModel.load("embedded:smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma3() -> LocalModel:
    """The embedded Gemma 3, prepared on first use."""
    return LocalModel.load("embedded:gemma3-270m")
