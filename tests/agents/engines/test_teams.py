"""Threads that compute end where another thread is to compute."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from unspoken.agents.engines import teams
from unspoken.agents.engines.teams import end_team, ending_team
from unspoken.agents.engines.worker import Worker

TASKS = Path("/proc/self/task")

pytestmark = pytest.mark.skipif(
    not TASKS.exists() or teams._pause() is None, reason="libgomp's threads are counted on Linux"
)


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    end_team()
    torch.set_num_threads(before)


def threads() -> int:
    """Threads of this process, Python's and others, once those that are at their end are gone."""
    before, now = -1, len(list(TASKS.iterdir()))
    while before != now:
        time.sleep(0.05)
        before, now = now, len(list(TASKS.iterdir()))
    return now


def compute() -> int:
    """Compute in parallel; the threads that there are then."""
    torch.ones(3000, 3000).exp_()
    return threads()


def in_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_a_team_ends_and_is_there_again() -> None:
    """After its end the thread computes as before, with a new team."""
    end_team()
    before = threads()
    assert compute() == before + 2
    end_team()
    assert threads() == before
    assert compute() == before + 2


def test_the_team_of_another_thread_stays() -> None:
    """A thread ends its own alone."""
    there = compute()
    in_thread(end_team)
    assert threads() == there


def test_a_team_ends_with_a_call_that_fails() -> None:
    """Whatever the call comes to."""
    end_team()
    before = threads()

    def failing() -> None:
        compute()
        raise ValueError("as it must")

    with pytest.raises(ValueError, match="as it must"):
        ending_team(failing)()
    assert threads() == before


def test_a_device_computes_beside_no_other_team() -> None:
    """The event loop's thread has ended its team, and the device's ends its own afterwards."""
    end_team()
    before, during = threads(), []

    def steps() -> Iterator[None]:
        during.append(compute())
        yield

    async def run() -> None:
        compute()
        await Worker("test").run(steps(), print)

    asyncio.run(run())
    assert during == [before + 3]  # the device's thread, and its two others
    assert threads() <= before + 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
def test_a_forked_child_ends_no_team() -> None:
    """Its threads stayed in the parent, and would be waited for without end."""
    compute()
    child = os.fork()
    if not child:
        end_team()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
