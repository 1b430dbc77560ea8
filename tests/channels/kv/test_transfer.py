"""States cross to another device in one copy, once for all who read them there."""

import gc
from collections import Counter
from dataclasses import replace

import fake_device
import pytest
import torch
from fake_device import noted
from torch import Tensor

from unspoken.channels.kv import copies, transfer
from unspoken.channels.kv.copies import rows_at
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.state import KVState

LAYERS, HEADS, ROWS, SIZE = 6, 2, 10, 4
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _devices() -> None:
    fake_device.install()


def device(number: int) -> torch.device:
    return torch.device("fake", number)


def state_of(layers: list[LayerState], hidden: dict[int, Tensor] | None = None) -> KVState:
    identity = ModelIdentity("w", "c", "t")
    return KVState(layers=tuple(layers), start=0, stop=ROWS, identity=identity, hidden=hidden or {})


def apart() -> KVState:
    """A state each of whose tensors has memory of its own, and more of it than rows."""
    draws = [torch.randn(2, HEADS, ROWS + 7, SIZE)[:, :, :ROWS] for _ in range(LAYERS)]
    return state_of([LayerState(keys.clone()[:, :ROWS], values, 0) for keys, values in draws])


def slab(spare: int = 0) -> KVState:
    """A state in one storage."""
    whole = torch.randn(LAYERS, 2, HEADS, ROWS + spare, SIZE)[:, :, :, :ROWS]
    return state_of([LayerState(keys, values, 0) for keys, values in whole])


def in_chunks() -> KVState:
    """A state whose layers lie in two pieces each."""
    state = apart()
    return KVState.joined((state.slice(0, 3), state.slice(3, ROWS)))


def assert_equal(one: KVState, other: KVState) -> None:
    for here, there in zip(one.layers, other.layers, strict=True):
        assert here.first == there.first
        for mine, theirs in ((here.keys, there.keys), (here.values, there.values)):
            assert torch.equal(mine.cpu(), theirs.cpu())


def copies_of(seen: Counter[str]) -> Counter[str]:
    """What crossed, whether somebody waited for it or not."""
    return Counter({what: count for what, count in seen.items() if not what.startswith("wait")})


@pytest.mark.parametrize("make", [apart, slab, lambda: slab(1), lambda: slab(30), in_chunks])
def test_a_state_crosses_in_one_copy(make) -> None:  # type: ignore[no-untyped-def]
    """However many layers it has, and however they lie in memory: there, across and back."""
    state = make()
    with noted() as seen:
        there = state.to(device(0))
        beyond = there.to(device(1))
        back = beyond.to(CPU)
    assert copies_of(seen) == Counter(upload=1, cross=1, download=1)
    assert there.devices == (device(0),) * LAYERS and back.devices == (CPU,) * LAYERS
    assert_equal(state, there)
    assert_equal(state, back)


def test_a_slab_stays_a_slab() -> None:
    """It crosses as it lies, and its layers are views of one storage there, too."""
    there = slab(1).to(device(0))
    places = {layer.keys.untyped_storage().data_ptr() for layer in there.layers}
    assert len(places) == 1
    assert there.layers[0].keys.stride() == slab(1).layers[0].keys.stride()


def test_rows_of_a_long_slab_cross_alone() -> None:
    """A few rows of many are packed: no more bytes cross than they have."""
    few = slab(200).to(device(0))
    assert few.layers[0].keys.untyped_storage().nbytes() == few.nbytes


def test_hidden_states_cross_with_the_first_layer() -> None:
    """They are of the same float type, so they are part of the same copy."""
    state = replace(apart(), hidden={2: torch.randn(4, 8)})
    with noted() as seen:
        there = state.to([device(0)] * 3 + [device(1)] * 3)
    assert copies_of(seen) == Counter(upload=2)
    assert there.devices == (device(0),) * 3 + (device(1),) * 3
    assert there.hidden[2].device == device(0)
    assert torch.equal(there.hidden[2].cpu(), state.hidden[2])
    assert_equal(state, there)


def test_what_is_there_is_not_copied() -> None:
    """Of a state that is in part where it is wanted, the rest crosses."""
    halves = apart().to([device(0)] * 3 + [device(1)] * 3)
    with noted() as seen:
        assert halves.to(halves.devices) is halves
        whole = halves.to(device(0))
    assert copies_of(seen) == Counter(cross=1)
    assert whole.layers[0].keys is halves.layers[0].keys
    assert_equal(halves, whole)


def test_readers_of_one_device_share_a_copy() -> None:
    """The first of them brings it there; it goes when the state goes."""
    state = replace(apart(), hidden={2: torch.randn(4, 8)})
    where = [device(0)] * LAYERS
    with noted() as seen:
        made = {id(rows_at(state, where)) for _ in range(4)}
        other = rows_at(state, [device(1)] * LAYERS)
    assert len(made) == 1 and copies_of(seen) == Counter(upload=2)
    assert not other.hidden
    assert rows_at(other, other.devices) is other
    gc.collect()
    held = len(copies._COPIES)
    del state
    gc.collect()
    assert len(copies._COPIES) == held - 1


@pytest.mark.parametrize("make", [apart, slab])
def test_what_goes_to_cuda_goes_through_pinned_memory(  # type: ignore[no-untyped-def]
    make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed or as it lies, it is in a pinned buffer before it crosses."""
    through: list[int] = []

    def empty(count: int, like: Tensor, *, pinned: bool) -> Tensor:
        through.extend([count] * pinned)
        return torch.empty(count, dtype=like.dtype, device=like.device)

    monkeypatch.setattr(transfer, "_empty", empty)
    monkeypatch.setattr(transfer, "_pins", lambda source, target: True)
    state = make()
    with noted() as seen:
        there = state.to(device(0))
    assert seen == Counter(upload=1)  # and no wait
    assert through == [state.cache_bytes // 4]
    assert_equal(state, there)


def test_only_what_cuda_reads_from_the_host_is_pinned() -> None:
    """Other devices, and copies from a device, gain nothing by it."""
    cuda, other = torch.device("cuda", 0), torch.device("mps")
    assert transfer._pins(CPU, cuda)
    assert not any(
        (transfer._pins(CPU, other), transfer._pins(cuda, CPU), transfer._pins(cuda, cuda))
    )


def test_numbers_wait_for_nothing_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """As to CUDA; elsewhere they go as torch sends them."""
    monkeypatch.setattr(transfer, "_pins", lambda source, target: target.type == "fake")
    monkeypatch.setattr(
        transfer, "_empty", lambda count, like, pinned: torch.empty(count, dtype=like.dtype)
    )
    with noted() as seen:
        there = transfer.numbers_at([(1, 2), (3, 4)], device(1))
    assert seen == Counter(upload=1)
    assert there.device == device(1) and there.cpu().tolist() == [[1, 2], [3, 4]]
    assert transfer.numbers_at((5, 6), CPU).tolist() == [5, 6]
