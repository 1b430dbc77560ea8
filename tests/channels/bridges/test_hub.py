"""Bridges to other machines: by a folder, or by the Hub."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError
from sample_bridges import ALPHA, BETA, flip, manifest, same, tensors

from unspoken.channels.bridges import hub
from unspoken.channels.bridges.folder import FILES, read
from unspoken.channels.bridges.manifest import EMBEDDINGS
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.errors import BridgeError, IdentityMismatch


def test_push_and_pull_by_a_folder(store: BridgeStore, bridge: Path, tmp_path: Path) -> None:
    """A folder serves as the Hub does: a bridge goes there whole, and into another store."""
    out = tmp_path / "out" / "alpha-beta"
    out.mkdir(parents=True)
    assert store.push(bridge, str(out)) == str(out)
    folder = store.pull(str(out))
    assert folder == store.folder(manifest())
    assert read(folder)[0] == read(bridge)[0] and same(read(folder)[1], tensors())
    assert store.pull(str(out), sharer=ALPHA, receiver=BETA) == folder
    assert (folder / "README.md").read_text() == (bridge / "README.md").read_text()


def test_pull_refuses_before_anything_enters(
    store: BridgeStore, bridge: Path, tmp_path: Path
) -> None:
    """A broken bridge, one under another pair's name, and one for other models all stay outside."""
    wrong = tmp_path / "a--b-0123456789ab"
    shutil.copytree(bridge, wrong)
    for place, settings, error, says in (
        (wrong, {}, BridgeError, "named for the pair 0123456789ab"),
        (bridge, {"sharer": BETA}, IdentityMismatch, "other weights"),
        (bridge, {"receiver": ALPHA}, IdentityMismatch, "other weights"),
        (bridge, {"revision": "main"}, BridgeError, "has no revisions"),
        (tmp_path / "none", {}, BridgeError, "there is no bridge at"),
    ):
        with pytest.raises(error, match=says):
            store.pull(str(place), **settings)
    flip(bridge)
    with pytest.raises(BridgeError, match="has the digest"):
        store.pull(str(bridge))
    assert store.entries() == []
    assert not any(store.root.glob("[!.]*"))


def test_a_broken_bridge_is_not_pushed(store: BridgeStore, bridge: Path, tmp_path: Path) -> None:
    """Nobody gets what we could not read ourselves."""
    flip(bridge)
    for place in (str(tmp_path / "out"), "owner/name"):
        with pytest.raises(BridgeError, match="has the digest"):
            store.push(bridge, place)
    assert not (tmp_path / "out").exists()


class FakeHub:
    """The Hub's calls that we make, over a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, repo_id: str, **settings: Any) -> huggingface_hub.RepoUrl:
        self.calls.append(("create_repo", {"repo_id": repo_id, **settings}))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, **settings: Any) -> None:
        self.calls.append(("upload_folder", settings))
        target = self.folder / settings["repo_id"]
        target.mkdir(parents=True)
        for file in settings["folder_path"].iterdir():
            if file.name in settings["allow_patterns"]:
                shutil.copy(file, target)

    def snapshot_download(self, repo: str, **settings: Any) -> str:
        """A snapshot as the Hub's cache has it: links to blobs, and files that others asked for."""
        self.calls.append(("snapshot_download", settings))
        found, snapshot = self.folder / repo, self.folder / "snapshots" / "main"
        snapshot.mkdir(parents=True)
        for file in found.iterdir():
            (snapshot / file.name).symlink_to(file)
        (snapshot / "LICENSE").write_text("as you like")
        return str(snapshot)


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", made.create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", made.upload_folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def test_push_and_pull_by_the_hub(store: BridgeStore, bridge: Path, fake_hub: FakeHub) -> None:
    """A bridge is a model repository of three files; pulling copies what the cache links to."""
    assert (
        store.push(bridge, "owner/some-bridge", private=True)
        == "https://huggingface.co/owner/some-bridge"
    )
    folder = store.pull("owner/some-bridge", "main")
    assert read(folder)[0] == read(bridge)[0]
    assert not any(path.is_symlink() for path in folder.iterdir())
    (create, first), (_, sent), (_, fetched) = fake_hub.calls
    assert create == "create_repo"
    assert first == {"repo_id": "owner/some-bridge", "private": True, "exist_ok": True}
    assert sent["allow_patterns"] == fetched["allow_patterns"] == [*FILES, EMBEDDINGS]
    assert sent["commit_message"] == "Bridge from alpha to beta"
    assert fetched["revision"] == "main"


def test_a_repository_named_for_another_pair_is_refused(
    store: BridgeStore, bridge: Path, fake_hub: FakeHub
) -> None:
    """A digest at the end of a repository's name counts as in a folder's."""
    store.push(bridge, "owner/alpha-beta-0123456789ab")
    with pytest.raises(BridgeError, match="named for the pair"):
        store.pull("owner/alpha-beta-0123456789ab")
    assert store.entries() == []


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (HFValidationError("Repo id must be …"), "owner/name"),
        (ConnectionError("offline"), "HF_HUB_OFFLINE"),
        (RuntimeError("something of the network's own"), "check the network"),
    ],
)
def test_the_hubs_errors_are_explained(
    store: BridgeStore, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    """What the Hub's client raises becomes an error with a way out."""

    def failing(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    with pytest.raises(BridgeError) as caught:
        store.pull("owner/name")
    assert says in str(caught.value) and "owner/name cannot be pulled" in caught.value.found


def test_folders_and_hub_ids_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there, or looks like a path, is a folder; all else is the Hub's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    for place in ("a/b", "./new", "../new", "/new", "~/new", ".", "x\\y"):
        assert hub.as_folder(place) is not None, place
    for place in ("owner/name", "name"):
        assert hub.as_folder(place) is None, place
