"""Manifests that somebody has bent: they are refused as such, whatever is wrong with them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bent_json import bent
from fusers import bridge_between, fuser_between
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sample_bridges import AUDIT

from unspoken.agents import LocalModel
from unspoken.channels.bridges.bridge import Bridge
from unspoken.channels.bridges.card import card
from unspoken.channels.bridges.folder import read, write
from unspoken.channels.bridges.manifest import BridgeManifest
from unspoken.channels.bridges.store import BridgeStore
from unspoken.channels.bridges.trust import measured_here, record
from unspoken.channels.errors import BridgeError, IdentityMismatch

Pair = tuple[LocalModel, LocalModel]
MANY = settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="session")
def whole(pair: Pair, root: Path) -> Path:
    """A bridge of the pair with all that one may have."""
    folder = root / "whole"
    bridge_between(*pair, folder, fuser_between(*pair, trained=True))
    manifest, tensors = read(folder)
    write(folder, manifest.model_copy(update={"audit": AUDIT}), tensors)
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path, cache: Path) -> Path:
    """A copy whose manifest may be changed; this machine has measured it."""
    record(read(whole)[0])
    return Path(shutil.copytree(whole, tmp_path / "bridge"))


def use(folder: Path, pair: Pair) -> Bridge:
    """All that a plan, a list and a page ask of a bridge."""
    BridgeStore(extra=[folder]).entries()
    bridge = Bridge.load(folder, trust=True)
    assert not measured_here(bridge.manifest)
    for ask in (bridge.describe, bridge.manifest.to_json, lambda: card(bridge.manifest)):
        assert isinstance(ask(), str)
    assert bridge.manifest.pair and bridge.native_layers >= 0
    bridge.check(*pair)
    return bridge


@MANY
@given(draw=st.data())
def test_a_manifest_with_any_field_bent_is_refused_or_of_no_record(
    draw: st.DataObject, pair: Pair, whole: Path, copied: Path
) -> None:
    """Its digest made to fit again, it is still not what this machine has measured."""
    text = (whole / "bridge.json").read_bytes()
    data = draw.draw(bent(json.loads(text)))
    data.pop("digest", None)
    if data == {**json.loads(text), "digest": data.get("digest")}:
        return
    (copied / "bridge.json").write_text(json.dumps(data))
    try:
        use(copied, pair)
    except (BridgeError, IdentityMismatch) as error:
        assert error.expected or error.fix


@MANY
@given(draw=st.data())
def test_a_manifest_with_any_characters_bent_is_refused(
    draw: st.DataObject, whole: Path, copied: Path
) -> None:
    """Its own digest tells, where nothing else does."""
    text = (whole / "bridge.json").read_text(encoding="utf-8")
    at = draw.draw(st.integers(0, len(text) - 1))
    stop = draw.draw(st.integers(at, min(len(text), at + 30)))
    put = draw.draw(st.one_of(st.text(max_size=6), st.sampled_from(["NaN", "1e999", "[" * 2000])))
    changed = text[:at] + put + text[stop:]
    try:
        manifest = BridgeManifest.parse(changed.encode("utf-8", "surrogatepass"), "bridge.json")
    except BridgeError as error:
        assert error.expected and error.fix
        return
    assert manifest.digest == "" or manifest.to_json() == text  # no digest, or the same values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("config", "rank"), 2**40),
        (("config", "hidden"), 10**400),
        (("config", "bottleneck"), 2**31),
        (("config", "rank"), "8"),
        (("config", "source_layers"), [99]),
        (("config", "native_layers"), 99),
        (("config", "bottleneck"), 0),
        (("config", "rank"), 0),
        (("config", "fuse"), 5),
        (("config", "fuse", "own_rank"), 2**40),
        (("receiver", "geometry", "hidden_size"), 2**19),
        (("receiver", "geometry", "layers", 0, "kv_heads"), 2**31),
        (("receiver", "geometry", "layers", 0, "kv_heads"), 4096),
        (("sharer", "geometry", "layers", 0, "head_dim"), 2**19),
        (("sharer", "ref"), "\ud800"),
        (("config", "note"), "\ud800"),
        (("config", "note"), [[[]]]),
        (("audit", "summary", "retention"), 10**400),
        (("audit", "earned"), 1e308),
        (("data", "seed"), 2**65),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_manifest_that_claims_more_than_its_weights_costs_nothing(
    path: tuple[Any, ...], value: Any, pair: Pair, copied: Path
) -> None:
    """It is refused before room is made for what it claims."""
    data = json.loads((copied / "bridge.json").read_text())
    del data["digest"]
    part = data
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (copied / "bridge.json").write_text(json.dumps(data))
    with pytest.raises(BridgeError) as caught:
        use(copied, pair)
    assert caught.value.expected


@pytest.mark.parametrize("side", ["sharer", "receiver"])
def test_a_manifest_that_tells_of_another_cache_than_its_model_has_is_refused(
    side: str, pair: Pair, copied: Path
) -> None:
    """Other frequencies would turn keys to other places, without a sign."""
    data = json.loads((copied / "bridge.json").read_text())
    del data["digest"]
    (name, *_) = data[side]["rotary"]
    data[side]["rotary"][name]["inverse_frequencies"][1] *= 1.5
    (copied / "bridge.json").write_text(json.dumps(data))
    with pytest.raises(BridgeError, match="for another") as caught:
        use(copied, pair)
    assert "frequencies" in caught.value.expected
