"""The bridges a workflow has met: looked up until found, fitted once, kept."""

from collections.abc import Iterator
from threading import Barrier, Thread
from typing import Any

import pytest
from flows import Pair, own_cache, sibling
from processes import LIMIT_S

from unspoken.agents import LocalModel
from unspoken.agents.bridge_cache import BridgeCache
from unspoken.agents.testing import FakeBridge, tiny_model


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with own_cache(tmp_path_factory.mktemp("cache")):
        one = tiny_model()
        yield one, sibling(one)


class Store:
    """What is stored, and how often it was looked for and fitted."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.stored: dict[Any, FakeBridge] = {}
        self.looked = self.fitted = 0
        patch.setattr("unspoken.agents.bridge_cache._stored", self.look)
        patch.setattr("unspoken.agents.bridge_cache._fit", self.fit)

    def look(
        self, folders: Any, sharer: LocalModel, receiver: LocalModel, trust: bool
    ) -> FakeBridge | None:
        self.looked += 1
        return self.stored.get((sharer.identity, receiver.identity))

    def fit(self, sharer: LocalModel, receiver: LocalModel, progress: Any) -> FakeBridge:
        self.fitted += 1
        progress("fit", 0.5)
        return FakeBridge(sharer, receiver)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    return Store(monkeypatch)


def test_a_bridge_is_looked_for_until_it_is_there(pair: Pair, store: Store) -> None:
    """What is found is kept; what is missing may come, so it is looked for again; ways differ."""
    bridges = BridgeCache()
    assert bridges.find(*pair) is None and bridges.find(*pair) is None
    bridge = store.stored[pair[0].identity, pair[1].identity] = FakeBridge(*pair)
    assert bridges.find(*pair) is bridge and bridges.find(*pair) is bridge
    assert store.looked == 3
    assert bridges.find(pair[1], pair[0]) is None


def test_a_stored_bridge_is_not_fitted(pair: Pair, store: Store) -> None:
    """A fit is for pairs that have none."""
    bridge = store.stored[pair[0].identity, pair[1].identity] = FakeBridge(*pair)
    assert BridgeCache().fit(*pair) is bridge and store.fitted == 0


def test_two_first_runs_fit_a_pair_once(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first and takes its bridge."""
    bridges, found = BridgeCache(), list[Any]()
    find, both = BridgeCache.find, Barrier(2, timeout=LIMIT_S)

    def together(self: BridgeCache, *ends: LocalModel) -> Any:
        seen = find(self, *ends)
        both.wait()  # both have found nothing before either fits
        return seen

    monkeypatch.setattr(BridgeCache, "find", together)
    threads = [Thread(target=lambda: found.append(bridges.fit(*pair))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.fitted == 1 and found[0] is found[1] is find(bridges, *pair)
