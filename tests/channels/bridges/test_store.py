"""The store of bridges: one folder per pair, found in order, listed whole or broken."""

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from sample_bridges import ALPHA, BETA, manifest, same, tensors

from unspoken.channels.bridges.folder import read, read_manifest, write
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.errors import BridgeError
from unspoken.channels.storage.files import cache_root
from unspoken.channels.storage.side import pair_digest


def test_the_default_root_is_in_the_users_cache() -> None:
    """The store lies beside the prepared models."""
    assert BridgeStore().root == cache_root() / "bridges"


def test_a_saved_bridge_is_found(store: BridgeStore) -> None:
    """By both identities in their order, and in a folder whose name says which models."""
    assert store.find(ALPHA, BETA) is None and store.entries() == []
    folder = store.save(manifest(), tensors())
    assert folder.name == f"alpha--beta-{pair_digest(ALPHA, BETA)}"
    assert store.find(ALPHA, BETA) == folder
    assert store.find(BETA, ALPHA) is None
    assert store.find(ALPHA, dataclasses.replace(BETA, tokenizer="x")) is None


def test_a_pair_has_one_folder(store: BridgeStore) -> None:
    """Another bridge of the pair takes the place of the first, whatever the models were called."""
    first = store.save(manifest(), tensors())
    renamed = manifest()
    ref = renamed.sharer.model_copy(update={"ref": "./elsewhere"})
    second = store.save(renamed.model_copy(update={"sharer": ref}), tensors(1))
    assert first == second and same(read(first)[1], tensors(1))
    assert [entry.path for entry in store.entries()] == [first]


def test_bridges_are_looked_for_in_order(
    store: BridgeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's store, then $UNSPOKEN_BRIDGES, then an example's: a store or one bridge."""
    example, single = BridgeStore(tmp_path / "example"), tmp_path / "single"
    last = example.save(manifest(), tensors())
    write(single, manifest(), tensors())
    looking = BridgeStore(store.root, [tmp_path / "nowhere", example.root])
    assert looking.find(ALPHA, BETA) == last
    monkeypatch.setenv("UNSPOKEN_BRIDGES", os.pathsep.join(["", "/nowhere/at/all", str(single)]))
    assert looking.find(ALPHA, BETA) == single and looking.find(BETA, ALPHA) is None
    own = store.save(manifest(), tensors())
    assert looking.find(ALPHA, BETA) == own
    assert [entry.path for entry in looking.entries()] == [own, single, last]


def test_removing(store: BridgeStore) -> None:
    """A bridge goes whole; one that is not there is an error, one that is broken is not."""
    folder = store.save(manifest(), tensors())
    (folder / "bridge.json").write_text("{")
    with pytest.raises(BridgeError, match="is not JSON"):
        store.find(ALPHA, BETA)
    assert store.remove(ALPHA, BETA) == folder and not folder.exists()
    assert store.find(ALPHA, BETA) is None
    with pytest.raises(BridgeError, match="has no bridge of the pair"):
        store.remove(ALPHA, BETA)


def test_broken_bridges_are_listed(store: BridgeStore) -> None:
    """A list hides nothing: broken bridges are there with what is wrong with them."""
    good = store.save(manifest(), tensors())
    cut = store.save(manifest("a/b"), tensors())
    os.truncate(cut / "bridge.safetensors", 10)
    garbled = store.save(manifest("c/d"), tensors())
    (garbled / "bridge.json").write_text("{")
    moved = store.root / "moved-000000000000"
    shutil.copytree(good, moved)
    (store.root / "something else").mkdir()
    found = {entry.path: entry for entry in store.entries()}
    assert set(found) == {good, cut, garbled, moved}
    assert found[good].error is None and found[good].manifest == read_manifest(good)
    assert "has 10 bytes" in str(found[cut].error) and found[cut].manifest is not None
    assert "is not JSON" in str(found[garbled].error) and found[garbled].manifest is None
    assert "named for the pair 000000000000" in str(found[moved].error)
    assert found[good].bytes == sum(file.stat().st_size for file in good.iterdir())


def test_a_bridge_under_another_pairs_name_is_not_used(store: BridgeStore) -> None:
    """A folder's name is compared with the identities in it."""
    wrong = store.root / f"x--y-{pair_digest(ALPHA, BETA)}"
    write(wrong, manifest("a/b"), tensors())
    with pytest.raises(BridgeError, match="is named for the pair"):
        store.find(ALPHA, BETA)


def test_a_store_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """A file where the store should be."""
    (tmp_path / "file").write_text("")
    store = BridgeStore(tmp_path / "file" / "store")
    assert store.find(ALPHA, BETA) is None and store.entries() == []
    with pytest.raises(BridgeError, match="cannot be written"):
        store.save(manifest(), tensors())
    with pytest.raises(BridgeError, match="cannot be written"), store.lock(ALPHA, BETA):
        pass
