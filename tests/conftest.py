"""What all tests share."""

import os
from pathlib import Path

import pytest
import torch

from unspoken.agents.models.model import LocalModel

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

if _WORKERS > 1:  # each worker, and each process that its tests start, keeps to its share
    _THREADS = max(1, (os.cpu_count() or 1) // _WORKERS)
    os.environ["OMP_NUM_THREADS"] = str(_THREADS)
    torch.set_num_threads(_THREADS)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: a worker that starts one at the end would keep the others waiting."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, and no bridges but those in it."""
    monkeypatch.setenv("UNSPOKEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UNSPOKEN_BRIDGES", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def smollm2() -> LocalModel:
    """The embedded SmolLM2, prepared on first use."""
    return LocalModel.load("embedded:smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma3() -> LocalModel:
    """The embedded Gemma 3, prepared on first use."""
    return LocalModel.load("embedded:gemma3-270m")
