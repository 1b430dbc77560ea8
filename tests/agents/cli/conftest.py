"""What the tests of the command line share."""

from pathlib import Path

import pytest
from command_line import write_workflow
from tiny import tiny_llama


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of our own, and output that does not depend on who runs this."""
    monkeypatch.setenv("UNSPOKEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "400")
    for name in ("UNSPOKEN_BRIDGES", "FORCE_COLOR", "TTY_COMPATIBLE", "UNSPOKEN_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def workflow(tmp_path: Path, model: Path) -> Path:
    return write_workflow(tmp_path, model)
