"""What the tests of models share."""

from pathlib import Path

import pytest
from tiny import tiny_gguf, tiny_llama


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``llama/`` and the same model as ``tiny.gguf``."""
    folder = tmp_path_factory.mktemp("made")
    tiny_gguf(folder / "tiny.gguf", tiny_llama(folder / "llama"))
    return folder
