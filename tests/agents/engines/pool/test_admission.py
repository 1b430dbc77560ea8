"""Who may start a turn: in the order of asking on each device, within the budget."""

import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import torch
from processes import LIMIT_S
from states import ROW, state_of

from unspoken.agents.engines.base import LeaseRequest
from unspoken.agents.engines.pool.budget import Budget
from unspoken.agents.engines.pool.pool import Pool
from unspoken.agents.engines.pool.statistics import Usage
from unspoken.channels.errors import RunError

CPU, META = torch.device("cpu"), torch.device("meta")
LIMIT = 40 * ROW

pytestmark = [pytest.mark.anyio, pytest.mark.event_loops]


def asks(nbytes: int, device: torch.device = CPU, owner: str = "") -> LeaseRequest:
    return LeaseRequest(device=device, refs=(), nbytes=lambda found: nbytes, owner=owner)


def total(pool: Pool) -> int:
    return pool.bytes_held + pool.queue.leased.total()


async def test_a_turn_waits_for_those_under_way_in_order() -> None:
    """Each gets its bytes when those before it have theirs; a small one does not overtake."""
    pool, order = Pool(Budget(LIMIT)), list[str]()

    async def turn(name: str, rows: int) -> None:
        async with pool.queue.lease(asks(rows * ROW), Usage()):
            order.append(name)
            assert total(pool) <= LIMIT
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        for name, rows in (("a", 30), ("b", 30), ("c", 5), ("d", 30)):
            tasks.start_soon(turn, name, rows)
            await anyio.lowlevel.checkpoint()
    assert order == ["a", "b", "c", "d"] and pool.queue.leased.total() == 0


async def test_a_device_s_turns_wait_for_no_other_device_s() -> None:
    """Who waits for memory of one device is in nobody's way on another, where two are too many."""
    pool, let_in = Pool(Budget(LIMIT)), list[torch.device]()

    async def turn(device: torch.device) -> None:
        async with pool.queue.lease(asks(30 * ROW, device), Usage()):
            let_in.append(device)
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        for device in (CPU, CPU, META, META):
            tasks.start_soon(turn, device)
            await anyio.wait_all_tasks_blocked()
        assert let_in == [CPU, META]
        tasks.cancel_scope.cancel()
    assert pool.queue.leased.total() == 0


async def test_two_names_of_a_device_are_one_order_of_asking() -> None:
    """As of "cuda" and "cuda:0"; a CPU has two names too."""
    pool, let_in = Pool(Budget(LIMIT)), list[torch.device]()

    async def turn(device: torch.device) -> None:
        async with pool.queue.lease(asks(30 * ROW, device), Usage()):
            let_in.append(device)
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        for device in (torch.device("cpu:0"), CPU):
            tasks.start_soon(turn, device)
            await anyio.wait_all_tasks_blocked()
        assert let_in == [torch.device("cpu:0")] and list(pool.queue.leased) == [CPU]
        tasks.cancel_scope.cancel()


async def test_nobody_is_let_in_before_a_finished_turns_state_counts() -> None:
    """Another thread gets a turn's memory once its state is put, not while it is."""
    pool, let_in = Pool(Budget(LIMIT)), threading.Event()

    async def other() -> None:
        async with pool.queue.lease(asks(30 * ROW), Usage()):
            let_in.set()
            assert total(pool) <= LIMIT

    async with pool.queue.lease(asks(30 * ROW), Usage()) as lease:
        thread = threading.Thread(target=anyio.run, args=(other,))
        thread.start()
        with lease.handing_over():
            assert not let_in.wait(0.1)
            pool.put(state_of(tuple(range(20))), tuple(range(20)))
        assert await anyio.to_thread.run_sync(let_in.wait, LIMIT_S)
        await anyio.to_thread.run_sync(thread.join)


async def test_a_turn_that_fits_nowhere_is_an_error_with_figures() -> None:
    """It says how much it needs and how much there is."""
    pool = Pool(Budget(LIMIT))
    with pytest.raises(RunError) as caught:
        async with pool.queue.lease(asks(50 * ROW, owner="solver"), Usage()):
            pass
    assert str(caught.value) == (
        "the turn of 'solver' needs 3.2 kB of state\nexpected: at most 2.6 kB, the memory for "
        "states\nfix: give the run more memory, lower max_new_tokens, or shorten what the agent "
        "reads"
    )


async def test_a_cancelled_turn_gives_its_bytes_back() -> None:
    """While it waits, and while it runs; the next one goes on."""
    pool = Pool(Budget(LIMIT))
    reached = list[str]()

    async def turn(name: str) -> None:
        async with pool.queue.lease(asks(30 * ROW), Usage()):
            reached.append(name)
            await anyio.sleep_forever()

    async with anyio.create_task_group() as outer:
        async with anyio.create_task_group() as inner:
            inner.start_soon(turn, "first")
            await anyio.wait_all_tasks_blocked()
            with anyio.move_on_after(0.01):
                await turn("waits in vain")
            outer.start_soon(turn, "second")
            await anyio.wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert reached == ["first", "second"]
        outer.cancel_scope.cancel()
    assert pool.queue.leased.total() == 0
