"""What is alive is seen, and what nothing refers to is not."""

import asyncio
import threading
from mmap import PAGESIZE, mmap

import torch

from unspoken.agents.bench.engine.memory import living, resident_bytes, resident_kind
from unspoken.agents.engines.base import TurnRequest
from unspoken.agents.engines.turn import run_turn
from unspoken.agents.testing import tiny_model


def test_tensors_count_by_storage() -> None:
    """Views of one memory count once, and no longer than they live."""
    before = living().tensor_bytes
    kept = torch.zeros(1000)
    views = [kept[:10], kept.view(10, 100)]
    assert living().tensor_bytes == before + 4000
    del kept, views
    assert living().tensor_bytes == before


def test_a_turn_under_way_is_a_job() -> None:
    """An unfinished generator of the package is, until it is closed."""
    before = living().jobs
    turn = run_turn(tiny_model(), TurnRequest(ids=(5, 6, 7)))
    next(turn)
    assert living().jobs > before
    turn.close()
    assert living().jobs == before


def test_tasks_and_threads_are_counted() -> None:
    """Those of the loop that runs, and those that run beside it."""

    async def count() -> tuple[int, int]:
        before, go_on = living(), threading.Event()
        thread = threading.Thread(target=go_on.wait)
        thread.start()
        task = asyncio.create_task(asyncio.sleep(10))
        now = living()
        go_on.set()
        task.cancel()
        thread.join()
        return now.tasks - before.tasks, now.threads - before.threads

    assert asyncio.run(count()) == (1, 1)


def test_the_memory_of_this_process_is_known_or_said_to_be_unknown() -> None:
    """Where it is what there is now, memory of a new mapping shows once it is written to."""
    with mmap(-1, 2**26) as fresh:  # pages that no allocator had before
        before = resident_bytes()
        assert (before is None) == (resident_kind() == "unknown")
        if before is not None and resident_kind() == "now":
            for page in range(0, len(fresh), PAGESIZE):
                fresh[page] = 1
            after = resident_bytes()
            assert after is not None and after - before > 2**25
