"""Checkpoints quantised by the packages themselves; each is tried where its package is."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from flows import own_cache
from model_sweep import VOCABULARY, _broken, _generated, ids_of
from quantised_models import QUANTISED
from sample_adapters import save_adapter
from transformers import AutoModelForCausalLM

from unspoken.agents.models.checkpoints.quantised import stored_digest
from unspoken.agents.models.model import LocalModel
from unspoken.channels.errors import ModelSupportError

ROUNDED = ("torchao int8, inputs too", "W8A8")
"""Those that round what their layers read."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("quantised")
    with own_cache(root / "cache"):
        yield root


def made(root: Path, kind: str) -> Path:
    """A checkpoint of a kind, made once."""
    package, make = QUANTISED[kind]
    if find_spec(package) is None:
        pytest.skip(f"{package}, which reads this checkpoint, is not installed")
    place = root / kind.replace(" ", "-")
    return place / "it" if place.exists() else make(place)


@pytest.mark.parametrize("kind", QUANTISED)
def test_what_it_claims_holds(root: Path, kind: str) -> None:
    """It writes what transformers writes of it, also read again; continuations and splices hold."""
    folder = made(root, kind)
    first, model = LocalModel.load(folder), LocalModel.load(folder)  # proved, and as noted
    assert model.identity == first.identity
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    for one in (model.hf, plain):
        one.generation_config.eos_token_id = None
    prompt = ids_of(0, 9, VOCABULARY)
    assert _generated(model.hf, prompt) == _generated(plain, prompt)
    row = dict(model.abilities)
    assert row["text"] is None and row["continuation"] is None
    if kind in ROUNDED:  # a value near a step goes the other way where sums have another order
        assert "no gradient" in str(row["receiver"])
    elif model.dtype == torch.float32:
        assert list(_broken(model, row)) == []
    if model.dtype == torch.float32:
        assert model.identity.weights == stored_digest(folder)


def test_inputs_that_are_rounded_make_another_model(root: Path) -> None:
    """The same stored weights, read by layers that round what they read, are not the same model."""
    plain, rounded = (
        LocalModel.load(made(root, kind)).identity
        for kind in ("torchao int8", "torchao int8, inputs too")
    )
    assert plain.weights == rounded.weights and plain != rounded


def test_a_type_that_quantised_weights_do_not_compute_in_is_refused(root: Path) -> None:
    """Made in bfloat16 it is read in bfloat16, on a CPU too; another type is refused by name."""
    folder = made(root, "torchao fp8 of bfloat16")
    assert LocalModel.load(folder).dtype == torch.bfloat16
    with pytest.raises(ModelSupportError, match="was quantised in bfloat16") as caught:
        LocalModel.load(folder, dtype="float32")
    assert caught.value.fix == "load it with dtype: bfloat16"


@pytest.mark.parametrize("kind", ["torchao int8", "W4A16"])
def test_an_adapter_on_it(root: Path, kind: str) -> None:
    """With an adapter it computes what peft computes of it, and is another model."""
    from peft import PeftModel

    folder = made(root, kind)
    save_adapter(root / kind.replace(" ", "-") / "source", root / "poems", 0)
    base = LocalModel.load(folder)
    poems = base.with_adapter(root / "poems")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.arange(3, 23)
    plain(ids[None])  # compressed-tensors unpacks its layers when it is first called
    wrapped = PeftModel.from_pretrained(plain, root / "poems").eval()
    with torch.no_grad():
        expected = wrapped(ids[None]).logits[0]
    torch.testing.assert_close(poems.logits(ids), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(base.logits(ids), expected, atol=1e-2)
    assert poems.identity != base.identity


def test_settings_count(root: Path, tmp_path: Path) -> None:
    """Another setting of the same stored weights makes another model."""
    folder = made(root, "W8A8")
    before = LocalModel.load(folder).identity
    config = json.loads((folder / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["input_activations"] = None
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "config.json").write_text(json.dumps(config))
    assert LocalModel.load(other).identity != before
