"""Whose word an audit is: this machine's own, the user's, or nobody's."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flows import reader_solver
from fusers import bridge_between, fuser_between
from pairs import plan
from sample_bridges import AUDIT, manifest, tensors

from unspoken.agents import EdgePlan, LocalModel, Workflow
from unspoken.channels import ProjectedCacheChannel
from unspoken.channels.bridges.audit import stored
from unspoken.channels.bridges.audit.stored import keep_audit
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.fit.settings import FuseSettings
from unspoken.channels.bridges.folder import FILES, check, copy, read, read_manifest, write
from unspoken.channels.bridges.make import fit_bridge
from unspoken.channels.bridges.manifest import BridgeManifest
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.bridges.trust import measured_here, record
from unspoken.channels.errors import BridgeError

Pair = tuple[LocalModel, LocalModel]


def edited(folder: Path, change: Any, *, digest: str = "kept") -> None:
    """Change a manifest by hand; its digest is kept, removed or made to fit again."""
    data = json.loads((folder / "bridge.json").read_text())
    change(data)
    if digest != "kept":
        del data["digest"]
    (folder / "bridge.json").write_text(json.dumps(data))
    if digest == "made again":
        sealed = read_manifest(folder).sealed()
        (folder / "bridge.json").write_text(sealed.to_json())


def claim(data: dict[str, Any]) -> None:
    data["audit"]["earned"] = 0.99


@pytest.fixture
def shipped(pair: Pair, tmp_path: Path, cache: Path) -> Path:
    """The bridge of the pair, with an audit and fuse mode, as it came from elsewhere."""
    folder = tmp_path / "bridges"
    bridge_between(*pair, folder, fuser_between(*pair, trained=True))
    audited, weights = read(folder)
    write(folder, audited.model_copy(update={"audit": AUDIT}), weights)
    return folder


def planned(pair: Pair, shipped: Path, bridges: Any = "stored", **edge: Any) -> EdgePlan:
    """The plan of an edge between the pair, with a bridge beside its workflow."""
    edge = {"min_retention": 0.5, "share": "prompt"} | edge
    flow = reader_solver(*pair, "projected_cache", **edge)
    spec = flow.spec.model_copy(update={"bridges": bridges})
    models = dict(flow.models)
    (plan,) = Workflow.from_spec(spec, bridge_folders=[shipped], models=models).plan().edges
    return plan


def test_a_bridge_from_elsewhere_is_not_used_by_itself(pair: Pair, shipped: Path) -> None:
    """In neither mode; the plan names the command that measures it here, and the key."""
    for fuse in (False, True):
        edge = planned(pair, shipped, fuse=fuse)
        assert edge.mode == "text" and "never measured on this machine" in edge.reason
        assert f"unspoken bridge audit {shipped} --save" in edge.advice
        assert "bridges: trust" in edge.advice
    assert planned(pair, shipped, min_retention=0.0).mode == "text"


def test_bridges_trust_takes_it_by_its_own_audit_and_says_so(pair: Pair, shipped: Path) -> None:
    edge = planned(pair, shipped, "trust")
    assert (edge.mode, edge.retention) == ("projected", 0.7)
    assert "measured elsewhere" in edge.reason
    assert planned(pair, shipped, "trust", min_retention=0.75).mode == "text"
    assert planned(pair, shipped, "trust", fuse=True).mode == "fused"


def test_a_bridge_that_was_measured_here_needs_no_word(pair: Pair, shipped: Path) -> None:
    measured = AUDIT.model_copy(update={"summary": AUDIT.summary | {"message_kept_low": 0.6}})
    keep_audit(shipped, measured, read_manifest(shipped))
    edge = planned(pair, shipped)
    assert (edge.mode, edge.retention) == ("projected", 0.6)
    assert "measured elsewhere" not in edge.reason
    assert planned(pair, shipped, fuse=True).mode == "fused"


def test_a_bridge_object_from_elsewhere_is_held_to_the_same(pair: Pair, shipped: Path) -> None:
    """Loaded in Python: believed where it was said so, used unbelieved where nothing is asked."""

    def mode(least: float, **trust: bool) -> str:
        bridge = Bridge.load(shipped, **trust)
        flow = reader_solver(
            *pair, ProjectedCacheChannel(bridge), min_retention=least, max_loss=1.0
        )
        return flow.plan().edges[0].mode

    assert Bridge.load(shipped).bounds is None
    trusted = Bridge.load(shipped, trust=True).bounds
    assert trusted is not None and trusted.message_kept == 0.7
    assert [mode(0.5), mode(0.5, trust=True), mode(0.0)] == ["text", "projected", "projected"]


@pytest.mark.parametrize(
    "change",
    [
        claim,
        lambda data: data["audit"]["summary"].update(retention=1.0),
        lambda data: data["config"].update(gate="none"),
        lambda data: data["tensors"].update(blake3="0" * 64),
        lambda data: data["receiver"].update(ref="another/model"),
        lambda data: data["fit"].update(note="by hand"),
    ],
)
def test_a_manifest_that_was_changed_by_hand_is_refused_or_not_believed(
    bridge: Path, cache: Path, change: Any
) -> None:
    """Also one of this machine's own: with its old digest it is refused, with none or a new one it
    is anybody's."""
    record(read_manifest(bridge))
    assert measured_here(read_manifest(bridge))
    for digest in ("removed", "made again"):
        copied = bridge.with_name(digest)
        copy(bridge, copied)
        assert measured_here(read_manifest(copied))
        edited(copied, change, digest=digest)
        assert not measured_here(read_manifest(copied))
    edited(bridge, change)
    with pytest.raises(BridgeError, match="was changed since it was written") as caught:
        check(bridge)
    assert "unspoken bridge pull" in caught.value.fix


def test_an_audit_does_not_go_over_to_other_weights(
    bridge: Path, cache: Path, tmp_path: Path
) -> None:
    """The weights of another bridge under the manifest of an audited one are no such bridge."""
    record(read_manifest(bridge))
    other = tmp_path / "other"
    write(other, manifest(), tensors(seed=1))
    os.replace(other / "bridge.safetensors", bridge / "bridge.safetensors")
    with pytest.raises(BridgeError, match="has the digest"):
        read(bridge)
    there = read_manifest(other).tensors.model_dump()
    edited(bridge, lambda data: data.update(tensors=there), digest="made again")
    assert not measured_here(read(bridge)[0])


def test_a_pulled_bridge_is_from_elsewhere_until_it_is_measured(
    bridge: Path, store: BridgeStore
) -> None:
    folder = store.pull(str(bridge))
    assert not measured_here(check(folder))
    keep_audit(folder, AUDIT, check(folder))
    assert measured_here(check(folder))


def test_a_fit_is_of_this_machine(
    pair: Pair, store: BridgeStore, source: str, tmp_path: Path
) -> None:
    """With an audit or without; what it takes over from a stranger's bridge is not."""
    plain = replace(plan(source, None), out=tmp_path / "plain")
    folder = fit_bridge(*pair, plain)
    assert measured_here(check(folder))
    fuse = FuseSettings(steps=1, source_layers=1, own_layers=1, rank=4, own_rank=2, hidden=8,
                        bottleneck=4, gram_tokens=400, validation=2, batch=1)  # fmt: skip
    pulled = tmp_path / "pulled"
    copy(folder, pulled)
    edited(pulled, lambda data: data["fit"].update(note="by a stranger"), digest="made again")
    fit_bridge(*pair, replace(plain, out=pulled, fuse=replace(fuse, seed=1)))
    assert "fuse" in check(pulled).config and not measured_here(check(pulled))
    fit_bridge(*pair, replace(plain, fuse=fuse))
    assert "fuse" in check(folder).config and measured_here(check(folder))
    fit_bridge(*pair, replace(plain, out=pulled, refit=True))  # keeps the stranger's fuser
    assert "fuse" in check(pulled).config and not measured_here(check(pulled))


@pytest.mark.parametrize("source", ["/", "~", "..", "{}/text.txt", "\0", "."])
def test_a_text_that_a_strangers_manifest_names_is_not_looked_at(
    source: str, bridge: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a whole disk. What lies in the current folder is, if it is the very text."""
    (tmp_path / "text.txt").write_text("The keeper of the lighthouse counted the ships. " * 9)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copy(tmp_path / "text.txt", "text.txt")
    loaded: list[Any] = []
    monkeypatch.setattr(stored, "load_corpus", lambda *given, **seed: loaded.append(given))
    manifest = read_manifest(bridge)

    def look(name: str) -> BridgeManifest:
        named = manifest.data.model_copy(update={"sources": (name.format(tmp_path),)})
        loaded.clear()
        changed = manifest.model_copy(update={"data": named}).sealed()
        with suppress(AttributeError):  # the corpus is a fake
            stored.corpus_of(changed)
        return changed

    changed = look(source)
    assert loaded == [()]  # the built-in text alone
    record(changed)
    look(source)
    assert len(loaded[0]) == 1  # this machine's own
    look("text.txt")
    assert loaded[0] == (("text.txt",),)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_file_that_lies_elsewhere_is_refused_by_name(
    bridge: Path, tmp_path: Path, store: BridgeStore, name: str, kind: str
) -> None:
    """A link leads a reader out of the folder; a pipe would let it wait for ever."""
    (bridge / name).rename(tmp_path / name)
    if kind == "link":
        (bridge / name).symlink_to(tmp_path / name)
    else:
        os.mkfifo(bridge / name)
    for look in (check, read, lambda folder: copy(folder, tmp_path / "copy"), store.pull):
        with pytest.raises(BridgeError) as caught:
            look(str(bridge) if look == store.pull else bridge)
        assert kind == "pipe" or name in caught.value.found
    assert not (tmp_path / "copy").exists()


def test_a_cache_that_cannot_be_written_keeps_no_record(
    bridge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNSPOKEN_CACHE", str(tmp_path / "file" / "cache"))
    record(read_manifest(bridge))
    assert not measured_here(read_manifest(bridge))
