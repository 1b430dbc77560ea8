"""Quantised checkpoints: what reads one, and who it is by the values that it stores.

transformers reads them, with a package for most methods. What is in memory then depends on the
package and the device: packed, laid out anew, or floats again. What the files store does not.
"""

import json
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from blake3 import blake3

from unspoken.agents.models.identity import config_digest, tokenizer_digest
from unspoken.channels.errors import ModelReferenceError, ModelSupportError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.storage.files import read_json
from unspoken.channels.storage.forks import hash_threads

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGES = {
    "aqlm": ("accelerate", "aqlm"),
    "auto-round": ("auto_round",),
    "awq": ("accelerate", "gptqmodel"),
    "bitnet": ("accelerate",),
    "bitsandbytes": ("accelerate", "bitsandbytes"),
    "compressed-tensors": ("compressed_tensors",),
    "eetq": ("accelerate", "eetq"),
    "fbgemm_fp8": ("accelerate", "fbgemm_gpu"),
    "fp8": ("accelerate",),
    "gptq": ("accelerate", "optimum", "gptqmodel"),
    "hqq": ("accelerate", "hqq"),
    "mxfp4": ("accelerate",),
    "quanto": ("accelerate", "optimum"),
    "spqr": ("accelerate", "spqr_quant"),
    "torchao": ("torchao",),
    "vptq": ("accelerate", "vptq"),
}
"""The packages, as they are imported, that transformers reads each method with."""

OWN_TYPE = frozenset({"torchao"})
"""Methods whose tensors compute in the type that they were made in, and mostly in no other."""

_SENSES = re.compile(
    r"(model\.|thinker\.)*(visual|vision|audio|image|multi_modal|mm_|embed_(vision|audio))\w*\."
)
"""Names of tensors that read images or sound, at any depth where checkpoints have them."""

INSTALLED_AS = {"fbgemm_gpu": "fbgemm-gpu"}


def quantisation(folder: Path) -> str | None:
    """The method by which a checkpoint is quantised, by transformers' name; None where it is not.

    Args:
        folder: A folder with a config.json.
    """
    config = read_json(folder / "config.json") or {}
    parts = (config, config.get("text_config") or {})
    for part in parts:
        settings = part.get("quantization_config") or part.get("compression_config")
        if isinstance(settings, dict):
            named = settings.get("quant_method")
            bits = any(settings.get(f"load_in_{count}bit") for count in (4, 8))
            return str(named or ("bitsandbytes" if bits else "an unknown method"))
    return None


def refuse_quantised(ref: str, method: str, dtype: torch.dtype | None) -> None:
    """Refuse a checkpoint, before it is read, that cannot be read here, or not in this type.

    Raises:
        ModelSupportError: naming the packages that are not installed, or the type.
    """
    if dtype == torch.int8:
        raise ModelSupportError(
            f"{ref!r} is quantised with {method} already, and int8 was asked for",
            expected="a float type for what is not quantised",
            fix="leave dtype out",
        )
    missing = [name for name in PACKAGES.get(method, ()) if find_spec(name) is None]
    if missing:
        names = " ".join(INSTALLED_AS.get(name, name.replace("_", "-")) for name in missing)
        raise ModelSupportError(
            f"{ref!r} is quantised with {method}, and {', '.join(missing)} is not installed",
            expected="the packages that transformers reads this method with",
            fix=f"pip install {names}",
        )
    if method == "compressed-tensors":  # before its bars are silenced
        import_module("compressed_tensors.compressors")


def quantised_identity(
    folder: Path, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase"
) -> ModelIdentity:
    """Who a quantised checkpoint is, read in a type: by what it stores, not by what was made of it.

    Args:
        folder: The checkpoint.
        model: What was read. The type of what is not quantised, of fewer than 32 bits, makes
            another model of it, whether that type was asked for or found in the checkpoint.
        tokenizer: Its tokenizer.
    """
    stored = stored_digest(folder)
    dtype = type_read(model)
    if dtype not in (torch.float32, torch.float64):
        stored = blake3(f"{stored} in {dtype}".encode()).hexdigest()
    return ModelIdentity(stored, config_digest(model.config), tokenizer_digest(tokenizer))


def type_read(model: "PreTrainedModel") -> torch.dtype:
    """The type that a quantised checkpoint was read in: what was asked for, or else its own.

    Tensors do not say it, for some methods leave those that are not quantised as they are stored.
    """
    dtype = model.config.dtype
    return dtype if isinstance(dtype, torch.dtype) else model.dtype


def rounds_inputs(model: "PreTrainedModel") -> bool:
    """Whether a quantised model rounds what its layers read too, each token by its own values."""
    settings: Any = getattr(model.config, "quantization_config", None)
    plain = settings.to_dict() if hasattr(settings, "to_dict") else settings
    return getattr(model, "is_quantized", False) and _names_inputs(plain)


def _names_inputs(settings: object) -> bool:
    """Whether settings say anything of activations; bitsandbytes' 8 bits round them unasked."""
    if isinstance(settings, Mapping):
        if settings.get("load_in_8bit"):
            return True
        named = ((str(key).lower(), value) for key, value in settings.items())
        return any((value and "activation" in key) or _names_inputs(value) for key, value in named)
    if isinstance(settings, list | tuple):
        return any(map(_names_inputs, settings))
    return "activation" in f"{type(settings).__name__} {settings}".lower()


def in_memory(model: "PreTrainedModel") -> "PreTrainedModel":
    """A model whose quantised layers can be called one by one.

    compressed-tensors unpacks its layers when the whole model is first called, and no layer is
    itself before.
    """
    compressor = getattr(getattr(model, "hf_quantizer", None), "compressor", None)
    if compressor is not None and hasattr(compressor, "decompress_model"):
        compressor.decompress_model(model)
    return model


def refuse_type(ref: str, model: "PreTrainedModel") -> None:
    """Refuse a quantised model read in a type that its quantised weights do not compute in.

    Raises:
        ModelSupportError: naming the type that they are of.
    """
    types = {one.dtype for one in model.parameters() if hasattr(type(one), "__tensor_flatten__")}
    if not types or types == {model.dtype}:
        return
    try:
        with torch.no_grad():
            model(torch.tensor([[0, 1]], device=model.device))
    except RuntimeError as error:
        own = ", ".join(sorted(str(one).removeprefix("torch.") for one in types))
        raise ModelSupportError(
            f"{ref!r} was quantised in {own}, and does not compute in {model.dtype}",
            expected=f"the type that its weights were quantised in: {own}",
            fix=f"load it with dtype: {own}",
        ) from error


def stored_digest(folder: Path) -> str:
    """BLAKE3 (hex) over the tensors that a checkpoint stores: names, types, shapes and bytes.

    It is the same however the checkpoint is cut into files. What reads images or sound has no part
    in it: only the text part is served.

    Raises:
        ModelReferenceError: A checkpoint without safetensors, or a broken one.
    """
    digest = blake3(max_threads=hash_threads())
    places = {name: place for file in _files(folder) for name, place in _tensors(file)}
    places = {name: place for name, place in places.items() if not _SENSES.match(name)}
    if not places:
        raise ModelReferenceError(
            f"{folder} has no safetensors",
            expected="a quantised checkpoint that is saved as safetensors",
            fix="save it again with safe_serialization=True",
        )
    views: dict[Path, memoryview] = {}
    for name, (file, about, first, stop) in sorted(places.items()):
        if file not in views:
            with file.open("rb") as opened:
                views[file] = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        head = json.dumps([name, about["dtype"], about["shape"]]).encode()
        digest.update(len(head).to_bytes(8, "little") + head)
        digest.update(views[file][first:stop])
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    index = read_json(folder / "model.safetensors.index.json") or {}
    return sorted({folder / name for name in index.get("weight_map", {}).values()})


def _tensors(file: Path) -> Iterator[tuple[str, tuple[Path, dict[str, Any], int, int]]]:
    """Per tensor of a safetensors file its name, and where its bytes are."""
    try:
        with file.open("rb") as opened:
            (size,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(size))
    except (OSError, ValueError, struct.error) as error:
        raise ModelReferenceError(
            f"{file} cannot be read: {error}",
            expected="a safetensors file",
            fix="download or copy the model again",
        ) from error
    for name, about in header.items():
        if name != "__metadata__":
            first, stop = about["data_offsets"]
            yield name, (file, about, 8 + size + first, 8 + size + stop)
