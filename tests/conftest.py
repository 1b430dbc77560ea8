"""What all tests share."""

import os

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


@pytest.fixture(scope="session")
def smollm2() -> LocalModel:
    """The embedded SmolLM2, prepared on first use."""
    return LocalModel.load("embedded:smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma3() -> LocalModel:
    """The embedded Gemma 3, prepared on first use."""
    return LocalModel.load("embedded:gemma3-270m")
