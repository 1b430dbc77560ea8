"""Many threads that load models at once."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from tiny import tiny_gemma3, tiny_llama
from transformers.utils import logging

from unspoken.agents import LocalModel

THREADS = 8


def at_once(works: list[Callable[[], LocalModel]]) -> list[LocalModel]:
    """What each gives, all begun together on threads of their own."""
    start = Barrier(len(works))

    def go(work: Callable[[], LocalModel]) -> LocalModel:
        start.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(go, works))


@pytest.mark.parametrize("several", [False, True])
def test_threads_load_as_one_does(tmp_path: Path, cache: Path, several: bool) -> None:
    """Each has the model that it asked for, whole, in its own dtype; globals are as before."""
    folders = [
        tiny_llama(tmp_path / "a"),
        tiny_gemma3(tmp_path / "b"),
        tiny_llama(tmp_path / "c", 1),
    ]
    refs = [str(folder) for folder in (folders if several else folders[:1])]
    alone = {ref: LocalModel.load(ref) for ref in refs}
    asked = [(refs[n % len(refs)], ("float32", "bfloat16")[n // 2 % 2]) for n in range(THREADS)]
    verbosity = logging.get_verbosity()
    for _ in range(3):
        for note in cache.glob("identities/*"):
            note.unlink()
        works = [
            lambda ref=ref, dtype=dtype: LocalModel.load(ref, dtype=dtype) for ref, dtype in asked
        ]
        for (ref, dtype), model in zip(asked, at_once(works), strict=True):
            assert model.identity == alone[ref].identity
            assert {weight.dtype for weight in model.hf.parameters()} == {getattr(torch, dtype)}
            ours, its = model.message("the reader").state, alone[ref].message("the reader").state
            assert ours is not None and its is not None
            assert torch.allclose(ours.layers[0].keys.float(), its.layers[0].keys, atol=0.05)
    assert torch.get_default_dtype() == torch.float32
    assert logging.get_verbosity() == verbosity
    assert logging.set_tqdm_hook(None) is None
