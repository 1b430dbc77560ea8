"""Tiny Llamas quantised by the packages themselves, as people save them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig


def by_torchao(folder: Path, name: str, dtype: torch.dtype = torch.float32, **made: Any) -> Path:
    """A checkpoint of torchao, whose configuration class is called `name`."""
    from torchao import quantization

    source = tiny_llama(folder / "source")
    settings = TorchAoConfig(getattr(quantization, name)(**made))
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, quantization_config=settings)
    model.save_pretrained(folder / "it")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "it")
    return folder / "it"


def by_compressed_tensors(
    folder: Path, layout: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None = None
) -> Path:
    """A checkpoint of compressed-tensors, as llm-compressor saves it for vLLM."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    source, it = tiny_llama(folder / "source"), folder / "it"
    model = AutoModelForCausalLM.from_pretrained(source)
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    settings = QuantizationConfig(
        config_groups={"group_0": {**group, "format": layout}},
        ignore=["lm_head"],
        format=layout,
        quantization_status="frozen",
    )
    apply_quantization_config(model, settings)
    largest = 2 ** (weights["num_bits"] - 1) - 1
    for layer in model.modules():
        if hasattr(layer, "weight_scale"):
            groups = layer.weight.data.reshape(layer.weight_scale.shape[0], *_parts(weights))
            layer.weight_scale.data = groups.abs().amax(-1).reshape(layer.weight_scale.shape)
            layer.weight_scale.data /= largest
    compressor = ModelCompressor(quantization_config=settings)
    compressor.compress_model(model)
    model.config.save_pretrained(it)
    compressor.update_config(it)
    stored = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(stored, it / "model.safetensors", {"format": "pt"})
    AutoTokenizer.from_pretrained(source).save_pretrained(it)
    return it


def _parts(weights: Mapping[str, Any]) -> tuple[int, ...]:
    return (-1, weights["group_size"]) if weights["strategy"] == "group" else (-1,)


FOUR = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
EIGHT = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
BY_TOKEN = {**EIGHT, "strategy": "token", "dynamic": True}

QUANTISED: Mapping[str, tuple[str, Callable[[Path], Path]]] = {
    "torchao int8": ("torchao", lambda at: by_torchao(at, "Int8WeightOnlyConfig", version=2)),
    "torchao int8, inputs too": (
        "torchao",
        lambda at: by_torchao(at, "Int8DynamicActivationInt8WeightConfig", version=2),
    ),
    "torchao fp8 of bfloat16": (
        "torchao",
        lambda at: by_torchao(at, "Float8WeightOnlyConfig", torch.bfloat16),
    ),
    "W4A16": ("compressed_tensors", lambda at: by_compressed_tensors(at, "pack-quantized", FOUR)),
    "W8A8": (
        "compressed_tensors",
        lambda at: by_compressed_tensors(at, "int-quantized", EIGHT, BY_TOKEN),
    ),
}
"""By name, the package that makes and reads it, and what makes it in a folder."""
