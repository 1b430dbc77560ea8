"""Quantised checkpoints: read by transformers, and known by what they store."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_llama
from torch.testing._internal.two_tensor import TwoTensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

from unspoken.agents.models.checkpoints.quantised import PACKAGES, stored_digest
from unspoken.agents.models.identity import weights_digest
from unspoken.agents.models.model import LocalModel
from unspoken.agents.models.pretrained import load_pretrained
from unspoken.agents.models.watch import Watch
from unspoken.channels.errors import ModelSupportError

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}


def quantised(folder: Path, settings: dict[str, object]) -> Path:
    """Say in a checkpoint's configuration how it is quantised."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def in_fp8(folder: Path, dense: Path) -> tuple[Path, Path]:
    """A tiny Llama in FP8, as DeepSeek and Qwen store theirs, and the same values in float32."""
    for place in (folder, dense):
        tiny_llama(place)
    weights = load_file(folder / "model.safetensors")
    stored, values = {}, {}
    for name, tensor in weights.items():
        if "proj" not in name:
            stored[name] = values[name] = tensor
            continue
        scale = tensor.abs().max() / 448
        stored[name] = (tensor / scale).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale.reshape(1, 1)
        values[name] = stored[name].float() * scale
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    save_file(values, dense / "model.safetensors", {"format": "pt"})
    return quantised(folder, FP8), dense


def test_fp8_computes_what_it_stores(cache: Path, tmp_path: Path) -> None:
    """An FP8 checkpoint is served on a CPU, and gives the logits of the values that it stores."""
    folder, dense = in_fp8(tmp_path / "fp8", tmp_path / "dense")
    model = LocalModel.load(folder)
    ids = torch.arange(3, 40)
    plain = AutoModelForCausalLM.from_pretrained(dense)(ids[None]).logits[0]
    torch.testing.assert_close(model.logits(ids), plain, rtol=1e-4, atol=1e-4)
    assert model.identity.weights == stored_digest(folder)
    assert LocalModel.load(folder).identity == model.identity  # as noted
    with pytest.raises(ModelSupportError, match="quantised with fp8 already"):
        LocalModel.load(folder, dtype="int8")


def test_stored_digest_is_of_values_and_not_of_files(tmp_path: Path) -> None:
    """Shards change nothing, one value does."""
    folder = tiny_llama(tmp_path / "one")
    weights = load_file(folder / "model.safetensors")
    cut = tmp_path / "cut"
    cut.mkdir()
    names = sorted(weights)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: weights[name] for name in part}, cut / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (cut / "model.safetensors.index.json").write_text(json.dumps(index))
    assert stored_digest(cut) == stored_digest(folder)
    sees = {"model.vision_tower.weight": torch.ones(2), "visual.merger.weight": torch.ones(2)}
    save_file({**weights, **sees}, folder / "model.safetensors")
    assert stored_digest(cut) == stored_digest(folder)  # only the text part is served
    weights[names[0]][0, 0] += 1
    save_file(weights, folder / "model.safetensors")
    assert stored_digest(cut) != stored_digest(folder)


MISSING = {"awq": "gptqmodel", "gptq": "optimum gptqmodel", "bitsandbytes": "bitsandbytes"}
MISSING |= {"compressed-tensors": "compressed-tensors", "torchao": "torchao"}


@pytest.mark.parametrize("method", MISSING)
def test_missing_packages_are_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A checkpoint whose method needs packages that are not there says which, before it is read."""
    settings = {"load_in_4bit": True} if method == "bitsandbytes" else {"quant_method": method}
    folder = quantised(tiny_llama(tmp_path / "it"), settings)
    there = {"accelerate"}
    monkeypatch.setattr(
        "unspoken.agents.models.checkpoints.quantised.find_spec",
        lambda name: object() if name in there else None,
    )
    with pytest.raises(ModelSupportError) as caught:
        LocalModel.load(folder)
    assert f"quantised with {method}" in caught.value.found
    assert caught.value.fix.split() == ["pip", "install", *MISSING[method].split()]
    assert method in PACKAGES


def test_tensors_made_of_several_are_looked_into(tmp_path: Path) -> None:
    """Of a quantised tensor each part counts, for who a model is and for whether it was changed."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path / "it"))
    weight = model.lm_head.weight.detach()
    parts = TwoTensor(weight.clone(), weight.clone())
    model.lm_head.weight = torch.nn.Parameter(parts, requires_grad=False)
    watch, before = Watch(model), weights_digest(model)
    assert watch.check() == 0
    model.lm_head.weight.b[0, 0] += 1
    assert watch.check() == 1
    assert weights_digest(model) != before


def test_torchao(cache: Path, tmp_path: Path) -> None:
    """An int8 checkpoint of torchao computes what transformers computes of it."""
    quantization = pytest.importorskip("torchao.quantization")
    source = tiny_llama(tmp_path / "source")
    settings = TorchAoConfig(quantization.Int8WeightOnlyConfig(version=2))
    made = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, quantization_config=settings
    )
    made.save_pretrained(tmp_path / "it")
    AutoTokenizer.from_pretrained(source).save_pretrained(tmp_path / "it")
    model = LocalModel.load(tmp_path / "it")
    ids = torch.arange(3, 40)
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "it", dtype=torch.float32)
    torch.testing.assert_close(model.logits(ids), read(ids[None]).logits[0])
    assert model.identity.weights == stored_digest(tmp_path / "it")


def test_a_type_found_is_a_type_asked_for(cache: Path, tmp_path: Path) -> None:
    """In its own bfloat16 a checkpoint is who it is where bfloat16 is named, noted or not."""
    folder, _ = in_fp8(tmp_path / "fp8", tmp_path / "dense")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    types = (None, torch.bfloat16, torch.float32, None)
    own, named, wide, again = (
        load_pretrained("it", folder, dtype, lambda *_: False, None)[2] for dtype in types
    )
    assert own == named == again
    assert own.weights != wide.weights == stored_digest(folder)
