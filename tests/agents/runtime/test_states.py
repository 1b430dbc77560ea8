"""States on the shelf: shared by reference, freed by their last reader."""

import gc
import weakref

import pytest
import torch

from unspoken.agents.runtime.states import StateStore
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.kv.state import KVState, LayerState


def state(tokens: int) -> KVState:
    keys = torch.zeros(2, tokens, 4)
    return KVState((LayerState(keys, keys.clone(), 0),), 0, tokens, ModelIdentity("w", "c", "t"))


def test_all_readers_get_the_same_state() -> None:
    """A state is handed out by reference, never copied."""
    shelf, kept = StateStore(), state(3)
    handle = shelf.put(kept, readers=2)
    assert shelf.get(handle) is kept
    shelf.release(handle)
    assert shelf.get(handle) is kept


def test_the_last_reader_frees_the_state() -> None:
    """Once all have released it, the tensors are gone and the handle leads nowhere."""
    shelf, kept = StateStore(), state(3)
    tensor = weakref.ref(kept.layers[0].keys)
    handle = shelf.put(kept, readers=2)
    del kept
    shelf.release(handle)
    assert tensor() is not None
    shelf.release(handle)
    gc.collect()
    assert tensor() is None and len(shelf) == 0
    with pytest.raises(KeyError):
        shelf.get(handle)


def test_bytes_are_counted_and_their_peak_kept() -> None:
    """The peak is the most held at a time, not the sum of all that was."""
    shelf = StateStore()
    first = shelf.put(state(3), readers=1)
    shelf.release(first)
    second = shelf.put(state(2), readers=1)
    third = shelf.put(state(2), readers=1)
    assert shelf.bytes_held == shelf.peak_bytes == 2 * state(2).nbytes
    shelf.release(second)
    shelf.release(third)
    assert (shelf.bytes_held, shelf.peak_bytes) == (0, 4 * state(1).nbytes)


def test_clearing_frees_states_that_readers_still_wait_for() -> None:
    """A run that ends early leaves nothing behind."""
    shelf = StateStore()
    shelf.put(state(3), readers=5)
    shelf.clear()
    assert (len(shelf), shelf.bytes_held) == (0, 0)
