"""The states of a run: kept by content, counted by memory, freed by the last ticket."""

import gc
import weakref

import pytest
import torch

from unspoken.agents.runtime.states import StateStore
from unspoken.channels.kv.compressed import compress
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.state import KVState

IDENTITY = ModelIdentity("w", "c", "t")
IDS = (5, 6, 7, 8)


def state(tokens: int = 4, rough: int | None = None, identity: ModelIdentity = IDENTITY) -> KVState:
    keys = torch.zeros(2, tokens, 4)
    layers = (LayerState(keys, keys.clone(), 0),)
    return KVState(layers=layers, start=0, stop=tokens, identity=identity, approximate_from=rough)


def test_every_ticket_gives_the_same_state() -> None:
    """A state is handed out by reference, never copied."""
    store, kept = StateStore(), state()
    tickets = [store.put(kept, IDS), store.put(kept, IDS)]
    store.release(tickets[0])
    assert store.get(tickets[1]) is kept


def test_the_last_ticket_frees_the_state() -> None:
    """Once all are given back the tensors are gone, and a ticket leads nowhere."""
    store, kept = StateStore(), state()
    tensor = weakref.ref(kept.layers[0].keys)
    tickets = [store.put(kept, IDS), store.put(kept, IDS)]
    del kept
    store.release(tickets[0])
    assert tensor() is not None
    store.release(tickets[1])
    gc.collect()
    assert tensor() is None and len(store) == 0 and store.bytes_held == 0
    with pytest.raises(KeyError):
        store.get(tickets[1])


def test_equal_contents_are_held_once() -> None:
    """Exact states of one model over the same ids serve for each other, whoever computed them."""
    store, first = StateStore(), state()
    store.put(first, IDS, "a -> b")
    second = store.put(state(), IDS, "a -> c")
    assert store.get(second) is first and store.bytes_held == first.nbytes
    (held,) = store.statistics().states
    assert held.holders == ("a -> b", "a -> c") and held.tokens == 4


@pytest.mark.parametrize(
    ("other", "ids"),
    [
        (state(), (5, 6, 7, 9)),
        (state(rough=2), IDS),
        (state(identity=ModelIdentity("x", "c", "t")), IDS),
        (state().to(torch.device("meta")), IDS),
    ],
    ids=["other ids", "approximate", "another model", "another device"],
)
def test_unequal_contents_are_held_apart(other: KVState, ids: tuple[int, ...]) -> None:
    """What a state depends on tells it from others."""
    store = StateStore()
    ticket = store.put(state(), IDS)
    assert store.get(store.put(other, ids)) is not store.get(ticket)


def test_approximate_states_are_equal_only_where_they_are_the_same_rows() -> None:
    """Two splices of the same ids may differ in every row."""
    store, rough = StateStore(), state(rough=1)
    store.put(rough, IDS)
    store.put(rough.slice(0, 4), IDS)
    assert len(store) == 1
    store.put(state(rough=1), IDS)
    assert len(store) == 2


def test_memory_that_states_share_counts_once() -> None:
    """A slice keeps the whole buffer alive, and adds nothing to it."""
    store, whole = StateStore(), state()
    begin = store.put(whole.slice(0, 2), IDS[:2])
    assert store.bytes_held == whole.nbytes
    store.release(store.put(whole, IDS))
    assert store.bytes_held == store.peak_bytes == whole.nbytes
    store.release(begin)
    assert store.bytes_held == 0


def test_the_peak_is_the_most_at_a_time() -> None:
    """It is not the sum of all that was held."""
    store = StateStore()
    store.release(store.put(state(3), IDS))
    store.put(state(2), IDS)
    store.put(compress(state(32), "int8"), IDS * 8)
    statistics = store.statistics()
    assert statistics.peak_bytes == max(state(3).nbytes, statistics.bytes_held)
    assert statistics.bytes_held == sum(held.nbytes for held in statistics.states)


def test_clearing_frees_what_readers_still_wait_for() -> None:
    """A run that ends early leaves nothing behind."""
    store = StateStore()
    store.put(state(), IDS)
    store.clear()
    assert len(store) == 0 and store.bytes_held == 0 and not store.statistics().states
