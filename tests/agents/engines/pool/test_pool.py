"""The pool against a simple model of it, and what goes to disk."""

import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import torch
from hybrids import make_hybrid
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import LIMIT_S
from states import ROW, same_rows, state_of

from unspoken.agents.engines.base import LeaseRequest, StateRef
from unspoken.agents.engines.pool.budget import Budget
from unspoken.agents.engines.pool.pool import Pool
from unspoken.agents.engines.pool.spill_file import SpillFile
from unspoken.agents.engines.pool.statistics import Usage
from unspoken.agents.engines.pool.tensors import tensors_of
from unspoken.channels.errors import RunError, StateError
from unspoken.channels.kv.compressed import CompressedState, compress
from unspoken.channels.kv.state import KVState

CPU = torch.device("cpu")
LIMIT = 40 * ROW

pytestmark = [pytest.mark.anyio, pytest.mark.event_loops]


def asks(nbytes: int, *refs: StateRef, **more: Any) -> LeaseRequest:
    return LeaseRequest(device=CPU, refs=refs, nbytes=lambda found: nbytes, **more)


def total(pool: Pool) -> int:
    return pool.bytes_held + pool.queue.leased.total()


number = st.integers(0, 5)
step = st.one_of(
    st.tuples(st.just("put"), number, st.booleans()),
    st.tuples(st.just("cut"), number, number),
    st.tuples(st.just("release"), number, st.just(0)),
    st.tuples(st.just("expect"), number, number),
    st.tuples(st.just("lease"), number, st.integers(0, 30)),
    st.tuples(st.just("end"), number, st.just(0)),
)


class Model:
    """A pool, and beside it what each ticket must give."""

    def __init__(self, retain: bool) -> None:
        self.pool = Pool(Budget(LIMIT), retain=retain)
        self.expected: dict[StateRef, tuple[tuple[int, ...], KVState]] = {}
        self.leases: list[AsyncExitStack] = []

    async def apply(self, kind: str, first: int, second: int) -> None:
        await getattr(self, kind)(first, second)
        statistics = self.pool.statistics()
        assert statistics.tickets == len(self.expected)
        assert statistics.bytes_on_disk >= 0 and statistics.bytes_leased >= 0

    def pick(self, number: int) -> StateRef | None:
        refs = list(self.expected)
        return refs[number % len(refs)] if refs else None

    async def put(self, length: int, rough: int) -> None:
        ids = tuple(range(10 + length))
        state = state_of(ids, rough=3 if rough else None)
        ref = self.pool.put(state, ids)
        self.expected[ref] = ids, state_of(ids, rough=3 if rough else None)

    async def cut(self, number: int, tokens: int) -> None:
        ref = self.pick(number)
        if ref is not None:
            ids, state = self.expected[ref]
            found = self.pool.get(ref)
            assert isinstance(found, KVState)
            cut = min(tokens + 1, len(ids))
            new = self.pool.put(found.slice(0, cut), ids[:cut])
            self.expected[new] = ids[:cut], state.slice(0, cut)

    async def release(self, number: int, _: int) -> None:
        ref = self.pick(number)
        if ref is not None and not self.leases:
            del self.expected[ref]
            self.pool.release(ref)

    async def expect(self, number: int, due: int) -> None:
        ref = self.pick(number)
        if ref is not None:
            self.pool.expect(ref, due)

    async def lease(self, number: int, rows: int) -> None:
        ref = self.pick(number)
        stack = AsyncExitStack()
        request = asks(rows * ROW, *([] if ref is None else [ref]))
        # Beside others it may have to wait for them; alone it is let in, however long disks take.
        with anyio.move_on_after(0.05 if self.leases else LIMIT_S):
            try:
                await stack.enter_async_context(self.pool.queue.lease(request, Usage()))
            except RunError:
                assert not self.leases  # nobody else to wait for
                return
            assert total(self.pool) <= LIMIT or rows == 0
            if ref is not None:
                assert same_rows(self.pool.get(ref), self.expected[ref][1])
            self.leases.append(stack)
            return
        assert self.leases

    async def end(self, number: int, _: int) -> None:
        if self.leases:
            await self.leases.pop(number % len(self.leases)).aclose()

    async def over(self) -> None:
        """Every state is what it was, and nothing is left once all is given back."""
        while self.leases:
            await self.leases.pop().aclose()
        for ref, (_, state) in self.expected.items():
            assert same_rows(self.pool.get(ref), state)
        for ref in self.expected:
            self.pool.release(ref)
        statistics = self.pool.statistics()
        assert statistics.bytes_leased == 0
        assert statistics.bytes_held == statistics.bytes_cached <= LIMIT
        assert self.pool.retain or statistics.bytes_held == statistics.bytes_on_disk == 0
        self.pool.close()
        assert self.pool.bytes_held == self.pool.statistics().bytes_on_disk == 0


@settings(max_examples=60)
@given(st.lists(step, max_size=25), st.booleans())
def test_the_pool_keeps_what_its_model_keeps(
    steps: list[tuple[str, int, int]], retain: bool
) -> None:
    """Whatever is put, cut, leased and given back: the same bits, within the budget."""

    async def work() -> None:
        model = Model(retain)
        for kind, first, second in steps:
            await model.apply(kind, first, second)
        await model.over()

    anyio.run(work)


async def test_what_is_needed_last_goes_to_disk() -> None:
    """And comes back, bit by bit, for the turn that reads it."""
    pool, usage = Pool(Budget(LIMIT)), Usage()
    refs = [pool.put(state_of(tuple(range(n, n + 10))), tuple(range(n, n + 10))) for n in range(4)]
    for ref, due in zip(refs, (2, 9, 1, 3), strict=True):
        pool.expect(ref, due)
    async with pool.queue.lease(asks(10 * ROW), usage):
        assert [held.on_disk for held in pool.statistics().states] == [False, True, False, False]
        assert pool.bytes_held == 30 * ROW and usage.spilled_bytes == 10 * ROW
        assert pool.statistics().bytes_on_disk == 10 * ROW
    async with pool.queue.lease(asks(0, refs[1]), usage):
        assert same_rows(pool.get(refs[1]), state_of(tuple(range(1, 11))))
    for ref in refs:
        pool.release(ref)
    assert pool.bytes_held == pool.statistics().bytes_on_disk == 0


async def test_states_that_share_memory_share_it_after_disk_too() -> None:
    """A storage goes to disk once, and comes back once."""
    pool, ids = Pool(Budget(LIMIT)), tuple(range(20))
    whole = state_of(ids)
    refs = [pool.put(whole.slice(0, n), ids[:n]) for n in (20, 12, 5)]
    del whole
    async with pool.queue.lease(asks(30 * ROW), Usage()):
        assert pool.bytes_held == 0 and pool.statistics().bytes_on_disk == 20 * ROW
    async with pool.queue.lease(asks(0, *refs), Usage()):
        states = [pool.get(ref) for ref in refs]
    assert pool.bytes_held == 20 * ROW
    places = {s.layers[0].keys.untyped_storage().data_ptr() for s in states}  # type: ignore[union-attr]
    assert len(places) == 1
    assert all(same_rows(s, state_of(ids).slice(0, s.stop)) for s in states)


async def test_a_compressed_state_comes_back_as_it_was() -> None:
    """All its tensors, scales and hidden states included."""
    pool, ids = Pool(Budget(4000)), tuple(range(32))
    packed = compress(state_of(ids), "int8")
    before = [tensor.clone() for tensor in packed.tensors()]
    ref = pool.put(packed, ids)
    del packed
    async with pool.queue.lease(asks(3800), Usage()):
        assert pool.bytes_held == 0
    back = pool.get(ref)
    assert isinstance(back, CompressedState) and back.codec == "int8"
    pairs = zip(before, back.tensors(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


async def test_snapshots_come_back_from_disk() -> None:
    """With all rows, bit by bit, so that the model goes on from them."""
    model, ids = make_hybrid("falcon-h1"), tuple(range(3, 30))
    state = model.read(ids)
    before = [tensor.clone() for tensor in tensors_of(state)]
    pool, size = Pool(Budget(2 * state.nbytes)), state.nbytes
    ref = pool.put(state, ids)
    del state
    async with pool.queue.lease(asks(2 * size), Usage()):
        assert pool.bytes_held == 0 and pool.statistics().bytes_on_disk >= size
    async with pool.queue.lease(asks(0, ref), Usage()):
        back = pool.get(ref)
    assert isinstance(back, KVState) and back.usable(model.geometry, len(ids)) == len(ids)
    pairs = zip(before, tensors_of(back), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


async def test_an_approximate_state_is_not_taken_for_another_in_its_old_memory() -> None:
    """What lies where a state lay before it went to disk is another state."""
    pool, ids = Pool(Budget(LIMIT)), tuple(range(20))
    ref = pool.put(state_of(ids, rough=0), ids)
    async with pool.queue.lease(asks(30 * ROW), Usage()):
        others = [pool.put(state_of(ids[::-1], rough=0), ids) for _ in range(3)]
    assert len({*map(id, map(pool.entry_of, [ref, *others]))}) == 4
    assert same_rows(pool.get(ref), state_of(ids, rough=0))


async def test_a_full_disk_is_told_and_the_state_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost: the error names the cause, and the state can still be read."""

    def full(file: SpillFile, storage: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SpillFile, "write", full)
    pool, ids = Pool(Budget(LIMIT)), tuple(range(20))
    ref = pool.put(state_of(ids), ids)
    with pytest.raises(RunError, match="cannot be put on disk: No space left on device"):
        async with pool.queue.lease(asks(30 * ROW), Usage()):
            pass
    assert same_rows(pool.get(ref), state_of(ids)) and pool.queue.leased.total() == 0


async def test_a_state_that_cannot_be_read_again_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn gets to know, and goes on without it."""
    pool, ids = Pool(Budget(LIMIT)), tuple(range(20))
    ref = pool.put(state_of(ids), ids)
    async with pool.queue.lease(asks(30 * ROW), Usage()):
        pass

    def broken(*asked: object) -> None:
        raise StateError("gone")

    monkeypatch.setattr(SpillFile, "read", broken)
    async with pool.queue.lease(asks(0, ref), Usage()) as lease:
        assert lease.lost == {ref}
    assert pool.queue.leased.total() == 0


@pytest.mark.skipif(os.name != "posix", reason="a file without a name, as POSIX has them")
async def test_the_file_has_no_name_and_goes_with_the_pool(tmp_path: Path) -> None:
    """Nobody else can open it, and no crash leaves it behind."""
    pool, ids = Pool(Budget(LIMIT), folder=tmp_path), tuple(range(20))
    pool.put(state_of(ids), ids)
    async with pool.queue.lease(asks(30 * ROW), Usage()):
        assert pool.statistics().bytes_on_disk == 20 * ROW
        assert os.listdir(tmp_path) == []
    pool.close()
    assert pool.statistics().bytes_on_disk == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=40))
@settings(max_examples=50)
def test_the_file_fills_what_is_free(steps: list[tuple[bool, int]]) -> None:
    """Regions never overlap, each keeps its bytes, and an empty file takes no room."""
    file, kept = SpillFile(), list[Any]()
    for write, nbytes in steps:
        if write or not kept:
            data = torch.randint(0, 255, (nbytes,), dtype=torch.uint8)
            kept.append((file.write(data.untyped_storage()), data))
        else:
            file.free(kept.pop(nbytes % len(kept))[0])
        assert file.used == sum(len(data) for _, data in kept)
    for region, data in kept:
        read = torch.empty(0, dtype=torch.uint8).set_(file.read(region, CPU))
        assert torch.equal(read, data)
    for region, _ in kept:
        file.free(region)
    assert file.used == file._stop == 0
    file.close()
