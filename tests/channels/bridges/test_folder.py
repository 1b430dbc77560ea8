"""A bridge's folder: what is written is read, and what is broken is refused."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors import safe_open
from sample_bridges import AUDIT, flip, manifest, same, tensors

from unspoken.channels.bridges import folder as folders
from unspoken.channels.bridges.folder import FILES, check, copy, read, read_manifest, verify, write
from unspoken.channels.errors import BridgeError


def test_a_bridge_round_trips(tmp_path: Path) -> None:
    """Tensors and manifest come back as they were, digest and size filled in."""
    made = write(tmp_path / "deep" / "bridge", manifest(audit=AUDIT), tensors())
    found, weights = read(tmp_path / "deep" / "bridge")
    assert found == made and same(weights, tensors())
    assert len(found.tensors.blake3) == 64
    file = tmp_path / "deep" / "bridge" / "bridge.safetensors"
    assert found.tensors.bytes == file.stat().st_size
    assert sorted(path.name for path in file.parent.iterdir()) == sorted(FILES)
    assert file.stat().st_mode & 0o777 == 0o644
    assert verify(file.parent) == check(file.parent) == read_manifest(file.parent) == made


def test_weights_that_share_memory_or_order_are_written(tmp_path: Path) -> None:
    """Views, transposes, twins and parameters are all weights."""
    base = torch.randn(4, 6)
    given = {"a": base, "b": base, "t": base.T, "row": base[1], "p": torch.nn.Parameter(base)}
    write(tmp_path / "bridge", manifest(), given)
    found = read(tmp_path / "bridge")[1]
    assert same(found, {name: tensor.detach() for name, tensor in given.items()})


def test_unsound_weights_are_refused(tmp_path: Path) -> None:
    """A bridge without weights, or with values that are not finite, is not written."""
    for bad in ({}, {"w": torch.tensor([1.0, float("nan")])}, {"w": torch.tensor(float("inf"))}):
        with pytest.raises(BridgeError, match=r"no tensors|not finite"):
            write(tmp_path / "bridge", manifest(), bad)
    assert not (tmp_path / "bridge").exists()


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(bridge: Path) -> None:
        found = json.loads((bridge / "bridge.json").read_text())
        change(found)
        found.pop("digest", None)  # as in files of versions that had none
        (bridge / "bridge.json").write_text(json.dumps(found))

    return edit


def _claim_size(bridge: Path) -> None:
    """Let the manifest agree with the size of a broken file, so that the header is what tells."""
    size = (bridge / "bridge.safetensors").stat().st_size
    _edit(lambda found: found["tensors"].update(bytes=size))(bridge)


def _resized(size: int) -> Callable[[Path], None]:
    def cut(bridge: Path) -> None:
        os.truncate(bridge / "bridge.safetensors", size)
        _claim_size(bridge)

    return cut


def _huge_tensor(bridge: Path) -> None:
    """A header that promises a terabyte."""
    end = 1 << 40
    header = {"w": {"dtype": "F32", "shape": [end // 4], "data_offsets": [0, end]}}
    text = json.dumps(header).encode()
    (bridge / "bridge.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    _claim_size(bridge)


BREAKAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no folder": (shutil.rmtree, "there is no bridge at", "bridge"),
    "no weights": (lambda b: (b / "bridge.safetensors").unlink(), "lacks bridge.safetensors", ""),
    "no manifest": (lambda b: (b / "bridge.json").unlink(), "lacks bridge.json", ""),
    "no card": (lambda b: (b / "README.md").unlink(), "lacks README.md", ""),
    "another file": (lambda b: (b / "x.bin").write_text(""), "holds x.bin too", "x.bin"),
    "another folder": (lambda b: (b / "sub").mkdir(), "holds sub too", "move sub out"),
    "manifest cut": (lambda b: os.truncate(b / "bridge.json", 99), "bridge.json is not JSON", ""),
    "manifest empty": (lambda b: os.truncate(b / "bridge.json", 0), "bridge.json is not JSON", ""),
    "manifest a list": (lambda b: (b / "bridge.json").write_text("[]"), "bridge.json holds no", ""),
    "manifest binary": (lambda b: (b / "bridge.json").write_bytes(b"\xff\0"), "is not JSON", ""),
    "manifest nested": (lambda b: (b / "bridge.json").write_text("[" * 10**5), "is not JSON", ""),
    "NaN": (
        _edit(lambda found: found["config"].update(x=float("nan"))),
        "bridge.json is not JSON: NaN",
        "",
    ),
    "newer format": (_edit(lambda found: found.update(format=3)), "has format 3", "upgrade"),
    "unknown key": (_edit(lambda found: found.update(new=1)), "bridge.json is no manifest", ""),
    "unknown key inside": (
        _edit(lambda found: found["sharer"]["identity"].update(new=1)),
        "sharer.identity.new",
        "",
    ),
    "lacking key": (_edit(lambda found: found.pop("receiver")), "receiver: Field required", ""),
    "another file name": (
        _edit(lambda found: found["tensors"].update(file="../../secret")),
        "tensors.file",
        "",
    ),
    "no digest": (_edit(lambda found: found["tensors"].pop("blake3")), "has the digest", ""),
    "flipped bit": (flip, "bridge.safetensors has the digest", ""),
    "weights cut": (
        lambda b: os.truncate(b / "bridge.safetensors", 300),
        "bridge.safetensors has 300 bytes",
        "",
    ),
    "weights cut, size agreed": (_resized(300), "bridge.safetensors cannot be read", ""),
    "weights a few bytes": (_resized(5), "bridge.safetensors cannot be read", ""),
    "weights empty": (_resized(0), "bridge.safetensors cannot be read", ""),
    "header of a terabyte": (_huge_tensor, "bridge.safetensors cannot be read", ""),
}


class Unread:
    """A safetensors file whose header may be looked at."""

    def __init__(self, file: Path, **settings: Any) -> None:
        self.opened = safe_open(file, **settings)

    def __enter__(self) -> "Unread":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_bridge_is_refused(
    bridge: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The error names the file, what was expected and the fix; no tensor is read before."""
    breakage, says, fix = BREAKAGES[name]
    breakage(bridge)
    monkeypatch.setattr(safetensors, "safe_open", Unread)
    for look in (read, verify):
        with pytest.raises(BridgeError) as caught:
            look(bridge)
        assert says in caught.value.found and str(bridge) in caught.value.found
        assert caught.value.expected
        assert (fix or "unspoken bridge pull") in caught.value.fix


@pytest.mark.parametrize("moment", ["opened", "read"])
def test_a_bridge_changed_while_it_is_read_is_read_again(
    bridge: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Weights whose digest was never compared are not handed out: the reader starts over."""
    real, changes = folders.digest_blake3, [1]

    def digest(file: Path) -> str:
        found = real(file)
        if file.parent == bridge and changes:
            write(bridge, manifest(), tensors(changes.pop()))
        return found

    class Gone:
        def __init__(self, file: Path, **settings: Any) -> None:
            if changes:
                write(bridge, manifest(), tensors(changes.pop()))
                raise RuntimeError("unable to open file")
            self.opened = safe_open(file, **settings)

        def __enter__(self) -> Any:
            return self.opened.__enter__()

        def __exit__(self, *given: Any) -> None:
            self.opened.__exit__(*given)

    if moment == "read":
        monkeypatch.setattr(folders, "digest_blake3", digest)
    else:
        monkeypatch.setattr(safetensors, "safe_open", Gone)
    assert same(read(bridge)[1], tensors(1)) and not changes


def test_an_oversized_manifest_is_not_read(bridge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's memory is filled by a manifest."""
    monkeypatch.setattr(folders, "MANIFEST_LIMIT", 100)
    with pytest.raises(BridgeError, match=r"bridge\.json has .* bytes"):
        read_manifest(bridge)


def test_hidden_files_do_not_count(bridge: Path) -> None:
    """The Hub adds .gitattributes, and its client .cache."""
    (bridge / ".gitattributes").write_text("")
    (bridge / ".cache").mkdir()
    assert read(bridge)[0].dtype == "float32"
    write(bridge, manifest(), tensors(1))
    assert same(read(bridge)[1], tensors(1))


@pytest.mark.parametrize("name", ["notes.txt", "README.md", ".git"])
def test_a_folder_with_other_things_is_neither_replaced_nor_removed(
    tmp_path: Path, name: str
) -> None:
    """Nothing that is not a bridge is lost, be it beside one."""
    for there in (tmp_path / "plain", tmp_path / "mixed"):
        if there.name == "mixed":
            write(there, manifest(), tensors())
        there.mkdir(exist_ok=True)
        if there.name == "mixed" and name == "README.md":
            continue
        (there / name).write_text("precious")
        for do in (lambda at: write(at, manifest(), tensors()), folders.remove):
            with pytest.raises(BridgeError, match="is no bridge's folder"):
                do(there)
        assert (there / name).read_text() == "precious"


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    """A file of any name is not a bridge's folder."""
    (tmp_path / "bridge.json").write_text("precious")
    with pytest.raises(BridgeError, match="it is a file"):
        write(tmp_path / "bridge.json", manifest(), tensors())
    assert (tmp_path / "bridge.json").read_text() == "precious"


def test_a_write_that_fails_leaves_the_former_bridge(
    bridge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends a write, the bridge before it is whole, and nothing is left beside it."""
    real = os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(source).name == "new" and Path(target) == bridge and failures:
            raise OSError(failures.pop())
        real(source, target)

    failures = ["the first try", "the second"]
    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(BridgeError, match="cannot be written"):
        write(bridge, manifest(), tensors(1))
    assert same(read(bridge)[1], tensors(1))  # it was complete: whoever looks next puts it there
    monkeypatch.setattr(folders, "card", lambda one: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(bridge, manifest(), tensors(2))
    assert same(read(bridge)[1], tensors(1))
    assert [path.name for path in bridge.parent.glob(".*.tmp-*")] == []


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the system is an error that a person can act on."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(BridgeError, match="No space left") as caught:
        write(tmp_path / "bridge", manifest(), tensors())
    assert "free some space" in caught.value.fix and not (tmp_path / "bridge").exists()


def test_a_copy_is_checked(bridge: Path, tmp_path: Path) -> None:
    """A copy is the same bridge without other files; a broken one is not copied."""
    (bridge / "LICENSE").write_text("as you like")
    assert copy(bridge, tmp_path / "copy") == read(tmp_path / "copy")[0]
    flip(bridge)
    with pytest.raises(BridgeError, match="has the digest"):
        copy(bridge, tmp_path / "other")
    assert not (tmp_path / "other").exists()
