"""The store of bridges: one folder per pair, found in order, listed whole or broken."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from filelock import FileLock
from huggingface_hub.errors import HFValidationError
from processes import environment, until
from sample_bridges import AUDIT, flip, identity, manifest, same, tensors

from unspoken.channels.bridges import hub
from unspoken.channels.bridges.folder import FILES, read, read_manifest, write
from unspoken.channels.bridges.store import BridgeStore, default_root, folder_name
from unspoken.channels.errors import BridgeError, IdentityMismatch
from unspoken.channels.storage.files import cache_root
from unspoken.channels.storage.side import pair_digest

HERE = str(Path(__file__).parents[2] / "support")
ALPHA, BETA = identity("owner/Alpha"), identity("owner/Beta")


@pytest.fixture(autouse=True)
def _no_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bridges but the test's own."""
    monkeypatch.setenv("UNSPOKEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UNSPOKEN_BRIDGES", raising=False)


@pytest.fixture
def bridge(tmp_path: Path) -> Path:
    """A whole bridge."""
    write(tmp_path / "bridge", manifest(audit=AUDIT), tensors())
    return tmp_path / "bridge"


@pytest.fixture
def store(tmp_path: Path) -> BridgeStore:
    return BridgeStore(tmp_path / "store")


# The store


def test_the_default_root_is_in_the_users_cache() -> None:
    """The store lies beside the prepared models."""
    assert default_root() == cache_root() / "bridges" == BridgeStore().root


def test_a_saved_bridge_is_found(store: BridgeStore) -> None:
    """By both identities in their order, and in a folder whose name says which models."""
    assert store.find(ALPHA, BETA) is None and store.entries() == []
    folder = store.save(manifest(), tensors())
    assert folder.name == f"alpha--beta-{pair_digest(ALPHA, BETA)}" == folder_name(manifest())
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
    """A folder's name is held against the identities in it."""
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


# Crashes and company

WRITER = """
import sys
from itertools import count
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from sample_bridges import AUDIT, flip, identity, manifest, same, side, tensors
from unspoken.channels.bridges.store import BridgeStore
store, made = BridgeStore(Path(sys.argv[1])), [tensors(0, 200), tensors(1, 200)]
store.save(manifest(), made[0])
print("ready", flush=True)
for turn in count(1):
    store.save(manifest(fit={"turn": turn % 2}), made[turn % 2])
"""


def started(code: str, *args: object) -> "subprocess.Popen[str]":
    """A process that runs `code`, its stdin and stdout ours."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args), HERE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment() | {"OMP_NUM_THREADS": "1"},
    )


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def whole(folder: Path) -> bool:
    """Whether the bridge is one of the writer's two versions, with that version's manifest."""
    found, weights = read(folder)
    return same(weights, tensors(int(found.fit.get("turn") or 0), 200))


KILLER = """
import os, signal, sys, time
from itertools import count
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from sample_bridges import AUDIT, flip, identity, manifest, same, side, tensors
from unspoken.channels.bridges.store import BridgeStore
store, made = BridgeStore(Path(sys.argv[1])), [tensors(0, 200), tensors(1, 200)]
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        for turn in count(1):
            store.save(manifest(fit={"turn": turn % 2}), made[turn % 2])
    time.sleep(float(line))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print("killed", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs fork and kill -9")
def test_a_store_survives_kills(store: BridgeStore) -> None:
    """After kill -9 at any moment a whole bridge is there; the next list clears up."""
    folder, left = store.save(manifest(), tensors(0, 200)), 0
    killer = started(KILLER, store.root)
    draw = random.Random(4)
    for _ in range(40):
        assert killer.stdin is not None
        killer.stdin.write(f"{draw.uniform(0.002, 0.05)}\n")
        killer.stdin.flush()
        assert line(killer) == "killed"
        left += bool(list(store.root.glob(".*.tmp-*")))
        found = store.find(ALPHA, BETA)
        assert found == folder and whole(found)
        assert [entry.error for entry in store.entries()] == [None]
        assert list(store.root.glob(".*.tmp-*")) == []
    killer.communicate()
    assert left > 10  # most kills came in the middle of a write


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from sample_bridges import AUDIT, flip, identity, manifest, same, side, tensors
from unspoken.channels.bridges.store import BridgeStore
real, moment = os.replace, sys.argv[3]
def replace(source, target):
    name = Path(source).name
    before = {"new": "moved away", "old": ""}.get(name, "written")
    if before == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
    if moment == "moved in" and name == "new":
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
if moment == "removed":
    import shutil
    shutil.rmtree = lambda *args, **more: os.kill(os.getpid(), signal.SIGKILL)
    pair = (manifest().sharer.to_identity(), manifest().receiver.to_identity())
    BridgeStore(Path(sys.argv[1])).remove(*pair)
BridgeStore(Path(sys.argv[1])).save(manifest(), tensors(1))
"""


@pytest.mark.parametrize(
    ("moment", "seed"), [("written", 0), ("moved away", 1), ("moved in", 1), ("removed", None)]
)
def test_a_kill_at_each_step(tmp_path: Path, moment: str, seed: int | None) -> None:
    """Old before the swap, new from its first rename on, gone once removal began."""
    root = tmp_path / "killed"
    name = BridgeStore(root).save(manifest(), tensors(0)).name
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(root), HERE, moment], env=environment()
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(list(root.glob(".*.tmp-*"))) == 1
    assert (root / name).exists() == (moment in ("written", "moved in"))
    for first in ("find", "read", "list", "write"):
        store = BridgeStore(tmp_path / first)
        shutil.copytree(root, store.root)
        _comes_first(store, store.root / name, first, seed)


def _comes_first(store: BridgeStore, folder: Path, first: str, seed: int | None) -> None:
    if first == "find":
        assert store.find(ALPHA, BETA) == (None if seed is None else folder)
    elif first == "list":
        assert [entry.path for entry in store.entries()] == ([] if seed is None else [folder])
        assert list(store.root.glob(".*.tmp-*")) == []
    elif first == "write":
        assert store.save(manifest(), tensors(2)) == folder
        assert list(store.root.glob(".*.tmp-*")) == []
        seed = 2
    if seed is None:
        with pytest.raises(BridgeError, match="there is no bridge at"):
            read(folder)
    else:
        assert same(read(folder)[1], tensors(seed))


def test_readers_beside_a_writer_find_it_whole(store: BridgeStore) -> None:
    """While a bridge is replaced over and over, every look finds it, and finds it whole."""
    process = started(WRITER, store.root)
    try:
        assert line(process) == "ready"
        end, looks = time.monotonic() + 2.0, 0
        while time.monotonic() < end:
            found = store.find(ALPHA, BETA)
            assert found is not None and whole(found)
            assert [entry.error for entry in store.entries()] == [None]
            looks += 1
        assert process.poll() is None and looks > 10
    finally:
        process.kill()
        process.communicate()


def test_a_writers_folder_is_not_cleared_away(store: BridgeStore) -> None:
    """A list leaves alone what a living process is writing."""
    folder = store.save(manifest(), tensors())
    left = store.root / f".{folder.name}.tmp-busy"
    (left / "new").mkdir(parents=True)
    with FileLock(store.root / f".{folder.name}.write.lock"):
        assert [entry.path for entry in store.entries()] == [folder]
        assert left.exists()
    store.entries()
    assert not left.exists()


MAKER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from sample_bridges import AUDIT, flip, identity, manifest, same, side, tensors
from unspoken.channels.bridges.store import BridgeStore
store, pair = BridgeStore(Path(sys.argv[1])), (identity("owner/Alpha"), identity("owner/Beta"))
with store.lock(*pair, waiting=lambda text: print("waiting", flush=True)):
    if store.find(*pair):
        print("found", flush=True)
    else:
        print("making", flush=True)
        sys.stdin.readline()
        store.save(manifest(), tensors())
"""


@pytest.mark.parametrize("killed", [False, True])
def test_two_that_need_one_bridge_make_it_once(store: BridgeStore, killed: bool) -> None:
    """The second waits, says so, and finds it; if the first is killed, the second makes it."""
    first = started(MAKER, store.root)
    assert line(first) == "making"
    second = started(MAKER, store.root)
    assert line(second) == "waiting"
    if killed:
        first.kill()
        first.communicate()
        assert line(second) == "making"
        second.communicate("go\n")
    else:
        first.communicate("go\n")
        assert second.communicate()[0] == "found\n"
    assert second.returncode == 0
    assert store.find(ALPHA, BETA) is not None


def test_a_wait_has_a_limit(store: BridgeStore) -> None:
    """A wait that ends says which lock it is; another pair has a lock of its own."""
    told: list[str] = []
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock(ALPHA, BETA):
            held.set()
            go.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        until(held.is_set)
        with (
            pytest.raises(BridgeError, match=r"for more than 0\.1 s"),
            store.lock(ALPHA, BETA, waiting=told.append, limit_s=0.1),
        ):
            pass
        with store.lock(BETA, ALPHA, waiting=told.append):
            store.save(manifest(), tensors())  # saving needs no lock
    finally:
        go.set()
        thread.join()
    assert len(told) == 1 and "waiting for it" in told[0]
    with store.lock(ALPHA, BETA, limit_s=0.1):
        pass


# To other machines


def test_push_and_pull_by_a_folder(store: BridgeStore, bridge: Path, tmp_path: Path) -> None:
    """A folder serves as the Hub does: a bridge goes there whole, and into another store."""
    out = tmp_path / "out" / "alpha-beta"
    out.mkdir(parents=True)
    assert store.push(bridge, str(out)) == str(out)
    folder = store.pull(str(out))
    assert folder == store.root / folder_name(manifest())
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
        for name in settings["allow_patterns"]:
            shutil.copy(settings["folder_path"] / name, target)

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
    assert sorted(sent["allow_patterns"]) == sorted(fetched["allow_patterns"]) == sorted(FILES)
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
