"""A bridge's folder: what is written is read, and what is broken is refused."""

import dataclasses
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors
import torch
from ruamel.yaml import YAML
from safetensors import safe_open
from sample_bridges import AUDIT, flip, identity, manifest, same, side, tensors

from unspoken.channels.bridges import folder as folders
from unspoken.channels.bridges.folder import FILES, check, copy, read, read_manifest, verify, write
from unspoken.channels.bridges.manifest import BridgeManifest
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry
from unspoken.channels.kv.rope import Rotary
from unspoken.channels.model import CausalModel
from unspoken.channels.storage.side import ModelDescription, pair_digest, short_name

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


# Manifests


class Model:
    """As much of a model as `ModelDescription.of` asks for."""

    def __init__(self) -> None:
        self.identity, self.dtype = ALPHA, torch.bfloat16
        layers = (LayerGeometry(2, 16, "a", None), LayerGeometry(2, 16, "b", 32))
        self.geometry = CacheGeometry(layers, 64, 128)
        draw = torch.Generator().manual_seed(0)
        self.rotaries = {
            "a": Rotary(torch.rand(8, generator=draw) ** 20, 1.0),
            "b": Rotary(torch.rand(8, generator=draw), 0.1 + 0.2, dynamic=True),
        }

    def rotary(self, name: str) -> Rotary:
        return self.rotaries[name]


def test_a_side_round_trips_through_json() -> None:
    """Identity, geometry and rotary frequencies come back bit for bit."""
    model: Any = Model()
    made = ModelDescription.of(model, "owner/Alpha")
    back = ModelDescription.model_validate(json.loads(made.model_dump_json()))
    assert back == made
    assert back.to_identity() == model.identity and back.to_geometry() == model.geometry
    assert (back.ref, back.layer_dtype) == ("owner/Alpha", "bfloat16")
    for name, rotary in back.to_rotary("cpu").items():
        wanted = model.rotaries[name]
        assert rotary.inverse_frequencies.dtype == torch.float32
        assert torch.equal(rotary.inverse_frequencies, wanted.inverse_frequencies)
        assert (rotary.scale, rotary.dynamic) == (wanted.scale, wanted.dynamic)
    assert {"identity", "geometry", "dtype", "rotary"} <= set(dir(CausalModel))


def test_a_side_needs_the_rotary_embeddings_of_its_layers() -> None:
    """A geometry that names one the side lacks is refused."""
    plain = side("a").model_dump()
    del plain["rotary"]["sliding"]
    with pytest.raises(ValueError, match="no rotary embedding sliding"):
        ModelDescription.model_validate(plain)


def test_a_manifest_round_trips() -> None:
    """What is written as JSON is read as it was, the audit included."""
    made = manifest(audit=AUDIT)
    assert BridgeManifest.parse(made.to_json().encode(), "bridge.json") == made
    assert made.format == 1 and made.audit.figure("retention") == 0.8125
    assert made.audit.figure("nothing") is None


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (2, ("has format 2, written by unspoken", "format 1, the one that unspoken", "upgrade")),
        (0, ("has format 0", "format 1", "unspoken bridge fit")),
        ("1", ('has format "1"', "format 1", "unspoken bridge fit")),
        (True, ("has format true", "format 1", "unspoken bridge fit")),
        (None, ("has format null", "format 1", "unspoken bridge fit")),
    ],
)
def test_another_format_is_refused(version: object, says: tuple[str, ...]) -> None:
    """The error says which format was found, whatever else the file holds."""
    text = json.dumps({"format": version, "keys": "of tomorrow"}).encode()
    with pytest.raises(BridgeError) as caught:
        BridgeManifest.parse(text, "x/bridge.json")
    assert all(part in str(caught.value) for part in ("x/bridge.json", *says))


def test_a_manifest_without_json_is_not_written(tmp_path: Path) -> None:
    """A figure that is not finite has no JSON; nothing is left behind."""
    for bad in (float("nan"), {1, 2}):
        with pytest.raises(BridgeError, match="manifest cannot be written"):
            write(tmp_path / "a" / "bridge", manifest(config={"x": bad}), tensors())
    assert [path.suffix for path in (tmp_path / "a").iterdir()] in ([], [".lock"])


def test_the_pair_is_told_by_every_part_and_by_direction() -> None:
    """Both identities count with all their fields, and a bridge back is another bridge."""
    seen = {pair_digest(ALPHA, BETA), pair_digest(BETA, ALPHA)}
    for name in ("weights", "config", "tokenizer"):
        seen.add(pair_digest(dataclasses.replace(ALPHA, **{name: "x"}), BETA))
        seen.add(pair_digest(ALPHA, dataclasses.replace(BETA, **{name: "x"})))
    assert len(seen) == 8
    assert all(len(digest) == 12 and int(digest, 16) >= 0 for digest in seen)


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("embedded:gemma3-270m", "gemma3-270m"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("/models/My Model/", "my-model"),
        ("C:\\models\\Q4_K_M.gguf", "q4-k-m"),
        ("a--b", "a-b"),
        ("..", "model"),
        ("x" * 99, "x" * 40),
    ],
)
def test_names_for_people(ref: str, name: str) -> None:
    """A reference becomes a part of a file name."""
    assert short_name(ref) == name


# One folder


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
    "newer format": (_edit(lambda found: found.update(format=2)), "has format 2", "upgrade"),
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


# Cards


def front_matter(bridge: Path) -> dict[str, Any]:
    text = (bridge / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    found = YAML(typ="safe").load(text.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_the_card_has_front_matter_that_the_hub_reads(bridge: Path) -> None:
    """Valid YAML, with the library, tags and both models."""
    found = front_matter(bridge)
    assert found["library_name"] == "unspoken"
    assert found["base_model"] == ["owner/Alpha", "owner/Beta"]
    assert {"unspoken", "kv-cache"} <= set(found["tags"])
    loaded = huggingface_hub.ModelCard.load(bridge / "README.md")
    assert loaded.data.to_dict() == found


@pytest.mark.parametrize(
    ("sharer", "receiver", "models"),
    [
        ("embedded:gemma3-270m", "b/c", ["google/gemma-3-270m", "b/c"]),
        ("/a folder: with 'quotes'", "b/c", ["b/c"]),
        ("a/b", "a/b", ["a/b"]),
        ("./x", "y.gguf", None),
    ],
)
def test_the_card_names_models_that_the_hub_knows(
    tmp_path: Path, sharer: str, receiver: str, models: list[str] | None
) -> None:
    """Folders and files are no base models; embedded models stand for their originals."""
    write(tmp_path / "bridge", manifest(sharer, receiver), tensors())
    assert front_matter(tmp_path / "bridge").get("base_model") == models


def test_the_card_tells_people(bridge: Path, tmp_path: Path) -> None:
    """Sizes, audit, use and the command that made it are all there."""
    text = (bridge / "README.md").read_text(encoding="utf-8")
    for part in (
        "# alpha → beta",
        "| KV heads | 1 | 1 |",
        "| qa | a \\| b | 2.5 | – |",
        "| retention | 0.8125 |",
        "qa.jsonl (40 rows)",
        "unspoken bridge pull",
        "unspoken bridge fit owner/Alpha owner/Beta",
        "| rank | 8 |",
    ):
        assert part in text, part
    write(tmp_path / "other", manifest(fit={"command": "make it so"}), tensors())
    other = (tmp_path / "other" / "README.md").read_text(encoding="utf-8")
    assert "make it so" in other and "Not measured yet" in other
