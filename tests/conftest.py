"""What all tests share."""

import gc
import os
from functools import cache as cache_results
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from unspoken.agents.models.model import LocalModel

settings.register_profile("any machine", deadline=None)  # an example may take as long as it takes
settings.load_profile("any machine")

_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))

if _WORKERS > 1:  # each worker, and each process that its tests start, keeps to its share
    _THREADS = max(1, (os.cpu_count() or 1) // _WORKERS)
    os.environ["OMP_NUM_THREADS"] = str(_THREADS)
    torch.set_num_threads(_THREADS)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: a worker that starts one at the end would keep the others waiting."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """What is imported by now stays; looking through it again makes each collection slow."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests in which the kind of event loop may matter are marked so, and run on both."""
    both = metafunc.definition.get_closest_marker("event_loops")
    if both and "anyio_backend" in metafunc.fixturenames:
        metafunc.parametrize("anyio_backend", ["asyncio", "trio"])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, and no bridges but those in it."""
    monkeypatch.setenv("UNSPOKEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UNSPOKEN_BRIDGES", raising=False)
    return tmp_path / "cache"


_load = LocalModel.load


@cache_results
def embedded(ref: str) -> LocalModel:
    """An embedded model, prepared on first use and loaded once a worker."""
    return _load(ref)


@pytest.fixture(autouse=True)
def _embedded_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test of an embedded model loads by reference is the worker's one."""
    if request.node.get_closest_marker("model") is None:
        return

    def load(ref: str, **settings: Any) -> LocalModel:
        asked = {key: value for key, value in settings.items() if key != "progress"}
        plain = all(value in (None, "auto") for value in asked.values())
        return embedded(ref) if plain and ref.startswith("embedded:") else _load(ref, **settings)

    monkeypatch.setattr(LocalModel, "load", load)


@pytest.fixture(scope="session")
def smollm2() -> LocalModel:
    return embedded("embedded:smollm2-135m-instruct")


@pytest.fixture(scope="session")
def gemma3() -> LocalModel:
    return embedded("embedded:gemma3-270m")
