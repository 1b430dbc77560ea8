"""The store under kill -9, beside other readers and writers, and its locks."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from processes import LIMIT_S, environment, until
from sample_bridges import ALPHA, BETA, manifest, same, tensors

from unspoken.channels.bridges.folder import read
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.errors import BridgeError

pytestmark = pytest.mark.long

HERE = str(Path(__file__).parents[2] / "samples")


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
    saved, tell = os.pipe()
    began, child = time.monotonic(), os.fork()
    if child == 0:
        for turn in count(1):
            store.save(manifest(fit={"turn": turn % 2}), made[turn % 2])
            os.write(tell, b".")
    os.read(saved, 1)
    time.sleep(float(line) * (time.monotonic() - began))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(saved)
    os.close(tell)
    print("killed", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs fork and kill -9")
def test_a_store_survives_kills(store: BridgeStore) -> None:
    """After kill -9 at any moment a whole bridge is there; the next list clears up."""
    folder, left = store.save(manifest(), tensors(0, 200)), 0
    killer = started(KILLER, store.root)
    draw = random.Random(4)
    for _ in range(20):
        assert killer.stdin is not None
        killer.stdin.write(f"{draw.uniform(0, 2)}\n")  # in the time that a save takes
        killer.stdin.flush()
        assert line(killer) == "killed"
        left += bool(list(store.root.glob(".*.tmp-*")))
        found = store.find(ALPHA, BETA)
        assert found == folder and whole(found)
        assert [entry.error for entry in store.entries()] == [None]
        assert list(store.root.glob(".*.tmp-*")) == []
    killer.communicate()
    assert left  # some kills came in the middle of a write


KILLED = """
import os, signal, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from sample_bridges import AUDIT, flip, identity, manifest, same, side, tensors
from unspoken.channels.bridges.store import BridgeStore
real = os.replace
def killed(*args, **more):
    os.kill(os.getpid(), signal.SIGKILL)
def write(root, moment):
    def replace(source, target):
        name = Path(source).name
        before = {"new": "moved away", "old": ""}.get(name, "written")
        if before == moment:
            killed()
        real(source, target)
        if moment == "moved in" and name == "new":
            killed()
    os.replace = replace
    if moment == "removed":
        shutil.rmtree = killed
        pair = (manifest().sharer.to_identity(), manifest().receiver.to_identity())
        BridgeStore(root).remove(*pair)
    BridgeStore(root).save(manifest(), tensors(1))
for line in sys.stdin:
    moment, root = line.rstrip("\\n").split(":", 1)
    child = os.fork()
    if child == 0:
        write(Path(root), moment)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def killed() -> Iterator["subprocess.Popen[str]"]:
    """A process that forks writers, which end at the moment that they are told of."""
    process = started(KILLED)
    yield process
    process.communicate()


@pytest.mark.skipif(os.name != "posix", reason="needs fork and kill -9")
@pytest.mark.parametrize(
    ("moment", "seed"), [("written", 0), ("moved away", 1), ("moved in", 1), ("removed", None)]
)
def test_a_kill_at_each_step(
    killed: "subprocess.Popen[str]", tmp_path: Path, moment: str, seed: int | None
) -> None:
    """Old before the swap, new from its first rename on, gone once removal began."""
    root = tmp_path / "killed"
    name = BridgeStore(root).save(manifest(), tensors(0)).name
    assert killed.stdin is not None
    killed.stdin.write(f"{moment}:{root}\n")
    killed.stdin.flush()
    assert line(killed) == str(-signal.SIGKILL)
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
        for _ in range(40):
            found = store.find(ALPHA, BETA)
            assert found is not None and whole(found)
            assert [entry.error for entry in store.entries()] == [None]
        assert process.poll() is None
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
            go.wait(LIMIT_S)

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
