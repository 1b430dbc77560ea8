"""What the tests of packets share."""

import pytest
from flows import Pair
from messages import message_of
from packets import TEXT, written
from pairs import load

from unspoken.agents.models.model import LocalModel
from unspoken.channels.message import Message


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return load(tmp_path_factory.mktemp("packets"))


@pytest.fixture(scope="session")
def model(models: Pair) -> LocalModel:
    return models[0]


@pytest.fixture(scope="session")
def message(model: LocalModel) -> Message:
    return message_of(model, TEXT)


@pytest.fixture(scope="session")
def packet(message: Message) -> bytes:
    return written(message)
