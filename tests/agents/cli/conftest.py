"""What the tests of the command line share."""

from pathlib import Path

import pytest
from command_line import write_workflow
from tiny import tiny_llama


@pytest.fixture(autouse=True)
def plain(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, and output that does not depend on who runs this."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "400")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "UNSPOKEN_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def workflow(tmp_path: Path, model: Path) -> Path:
    return write_workflow(tmp_path, model)
