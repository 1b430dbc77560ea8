"""A bridge's manifest, and what it says of both models."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_bridges import ALPHA, AUDIT, BETA, manifest, side, tensors

from unspoken.channels.bridges.folder import write
from unspoken.channels.bridges.manifest import BridgeManifest
from unspoken.channels.bridges.projector import ProjectorConfig
from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry
from unspoken.channels.kv.rope import Rotary
from unspoken.channels.model import CausalModel
from unspoken.channels.storage.side import ModelDescription, pair_digest, short_name


class Model:
    """As much of a model as `ModelDescription.of` asks for."""

    def __init__(self) -> None:
        self.identity, self.dtype = ALPHA, torch.bfloat16
        layers = (
            LayerGeometry(kv_heads=2, head_dim=16, rope="a", window=None),
            LayerGeometry(kv_heads=2, head_dim=16, rope="b", window=32),
        )
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
    text = made.to_json()
    assert BridgeManifest.parse(text.encode(), "bridge.json") == made
    assert json.loads(text)["audit"]["earned"] == made.audit.retention_lower_bound == 0.7
    text = text.replace('"earned"', '"retention_lower_bound"')
    assert BridgeManifest.parse(text.encode(), "bridge.json") == made
    assert made.format == 1 and made.audit.figure("retention") == 0.8125
    assert made.audit.figure("nothing") is None


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (3, ("has format 3, written by unspoken", "format 1 or 2, which unspoken", "upgrade")),
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


def test_a_bridge_with_a_sketch_has_a_format_of_its_own() -> None:
    """Versions that know of no sketch refuse it; other bridges stay as they can read them."""
    made = manifest()
    new = BridgeManifest.new(
        made.sharer,
        made.receiver,
        config={**made.config, "sketch": 8},
        dtype=made.dtype,
        data=made.data,
        fit=made.fit,
    )
    assert BridgeManifest.parse(new.to_json().encode(), "bridge.json").format == 2
    assert manifest().format == 1 and "sketch" not in ProjectorConfig(source_layers=()).to_dict()


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
