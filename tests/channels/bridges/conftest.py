"""What the tests of bridges share: two tiny models, a text, a store of their own."""

from pathlib import Path

import pytest
from flows import own_cache
from pairs import corpus, load, quick_fits
from sample_bridges import AUDIT, manifest, tensors

from unspoken.agents import LocalModel
from unspoken.channels.bridges.folder import write
from unspoken.channels.bridges.store import BridgeStore


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the pair's models and the text."""
    return tmp_path_factory.mktemp("bridges")


@pytest.fixture(scope="session")
def pair(root: Path) -> tuple[LocalModel, LocalModel]:
    """Sharer and receiver, their identities computed."""
    with own_cache(root / "cache"):
        sharer, receiver = load(root)
        assert sharer.identity != receiver.identity
    return sharer, receiver


@pytest.fixture(scope="session")
def source(root: Path) -> str:
    return corpus(root)


@pytest.fixture
def bridge(tmp_path: Path) -> Path:
    """A whole bridge between models that do not exist."""
    write(tmp_path / "bridge", manifest(audit=AUDIT), tensors())
    return tmp_path / "bridge"


@pytest.fixture
def store(cache: Path, monkeypatch: pytest.MonkeyPatch) -> BridgeStore:
    """A store of their own, which processes share that a test starts; fits into it are quick."""
    quick_fits(monkeypatch)
    return BridgeStore()
