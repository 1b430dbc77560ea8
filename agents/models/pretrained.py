"""A checkpoint read by transformers, and the device and float type to compute in."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from unspoken.agents.models.checkpoints.quantised import (
    OWN_TYPE,
    in_memory,
    quantisation,
    quantised_identity,
    refuse_quantised,
    refuse_type,
    type_read,
)
from unspoken.agents.models.checkpoints.text_part import is_multimodal, text_part
from unspoken.agents.models.checkpoints.tokenizer import read_tokenizer
from unspoken.agents.models.identity import model_identity
from unspoken.agents.models.linears.int8 import Int8Linear, quantize_linears
from unspoken.agents.models.notes import cached_identity, folder_key, remember
from unspoken.agents.models.quiet import Stage, first_line, quiet_transformers, silent
from unspoken.channels.errors import ModelReferenceError, ModelSupportError
from unspoken.channels.kv.geometry import ModelIdentity

WIDE = (None, torch.float32, torch.float64)
"""Types that hold all values of a checkpoint, its own among them."""


def load_pretrained(
    ref: str,
    folder: Path,
    dtype: torch.dtype | None,
    bring: Callable[[PreTrainedModel, torch.dtype | None], bool],
    progress: Callable[[str, float], None] | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, ModelIdentity]:
    """A checkpoint in the type and on the device to compute with, its tokenizer, and who it is.

    An identity is of the values that are computed with: a checkpoint that is rounded is another
    model, one that is widened is not. What was noted of the folder before is not computed again.

    Args:
        ref: What to call it.
        folder: Where it is.
        dtype: As `find_dtype` gives it.
        bring: Brings it to where it computes, in a type; whether values were rounded.
        progress: Called with a stage and a fraction.

    Raises:
        ModelReferenceError: The folder holds no such model, or is written to meanwhile.
        ModelSupportError: A model or a tokenizer that cannot be served.
    """
    files, identity = folder_key(folder), cached_identity(folder, dtype)
    known, method = identity is not None, quantisation(folder)
    if method is not None:
        refuse_quantised(ref, method, dtype)
    read_as = dtype if (known and dtype != torch.int8) or method is not None else None
    model, tokenizer = read_pretrained(ref, folder, read_as, progress)
    noted_as = dtype
    if method is not None:  # its own type, and what a method makes of one, show when it is read
        refuse_type(ref, model)
        noted_as = type_read(model)
        identity = cached_identity(folder, noted_as)
        known = identity is not None
        identity = identity or quantised_identity(folder, model, tokenizer)
    if identity is None and dtype in WIDE:
        identity = model_identity(model, tokenizer)
    rounded = bring(model, dtype)
    if identity is None:
        noted = None if rounded else cached_identity(folder)
        identity = noted or model_identity(model, tokenizer)
    if not known:
        with suppress(OSError):  # a cache that cannot be written costs time, not the run
            remember(folder, identity, files, noted_as)
    if folder_key(folder) != files:
        raise ModelReferenceError(
            f"files of {folder} were changed while they were being loaded",
            expected="files that nothing writes to",
            fix="load the model again",
        )
    return model, tokenizer, identity


def read_pretrained(
    ref: str, folder: Path, dtype: torch.dtype | None, progress: Callable[[str, float], None] | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A checkpoint's weights and tokenizer, on the CPU; code that it brings is never run.

    Without a `dtype` the weights have the widest float type that the checkpoint stores.

    Raises:
        ModelReferenceError: The folder holds no model that transformers can load.
        ModelSupportError: A model or a tokenizer that only code of its own can make.
    """
    try:
        with quiet_transformers(Stage("load", progress or silent)):
            tokenizer = read_tokenizer(folder)
            model = _read_model(folder, dtype)
    except (ModelSupportError, ModelReferenceError):
        raise
    except Exception as error:  # transformers and safetensors raise almost anything here
        if (refusal := strangers_code(ref, error)) is not None:
            raise refusal from error
        if isinstance(error, ImportError):
            raise ModelSupportError(
                f"{ref!r} needs a package that is not installed: {first_line(error)}",
                expected="the packages that transformers reads this checkpoint with",
                fix="install the package that is named",
            ) from error
        raise ModelReferenceError(
            f"{ref!r} could not be loaded from {folder}: {first_line(error)}",
            expected="a causal language model with weights, config.json and a tokenizer",
            fix="check the folder, or prepare the model again with `unspoken models prepare`",
        ) from error
    return model.requires_grad_(False), tokenizer


def _read_model(folder: Path, dtype: torch.dtype | None) -> PreTrainedModel:
    """The causal language model of a checkpoint; of a multimodal one, its text part."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    attention = _attention(config.get_text_config(decoder=True))
    multimodal = is_multimodal(config)
    reader = AutoModelForMultimodalLM if multimodal else AutoModelForCausalLM
    loaded: Any = reader.from_pretrained(
        folder,
        output_loading_info=True,
        trust_remote_code=False,  # left out, transformers asks on the terminal
        weights_only=True,  # a pickle of anything but tensors is refused
        dtype=dtype or ("auto" if quantisation(folder) else _checkpoint_dtype(folder)),
        attn_implementation={"text_config": attention} if multimodal else attention,
    )
    whole, info = loaded
    lost = {key: _parameter(whole, key) for key in info["missing_keys"]}
    model: PreTrainedModel = text_part(in_memory(whole)) if multimodal else in_memory(whole)
    _refuse_lost(model, lost)
    return model


def _parameter(model: PreTrainedModel, name: str) -> torch.Tensor | None:
    with suppress(AttributeError):
        return model.get_parameter(name)
    return None


def _refuse_lost(model: PreTrainedModel, lost: Mapping[str, torch.Tensor | None]) -> None:
    """Refuse a model with weights that its checkpoint does not store, which are then random.

    Args:
        model: The model, or the text part of what was read; what else was read may lack weights.
        lost: By name in the checkpoint, the parameters that it does not store.

    Raises:
        ModelReferenceError: naming one of them.
    """
    there = {id(weight) for weight in model.parameters()}
    names = sorted(name for name, weight in lost.items() if id(weight) in there)
    if names:
        others = f" and {len(names) - 1} other weights" if len(names) > 1 else ""
        raise ModelReferenceError(
            f"the checkpoint does not store {names[0]}{others}, and no other weight is tied to it",
            expected="a checkpoint with every weight that its config.json asks for",
            fix="save or download the model again, or correct its config.json",
        )


def strangers_code(ref: str, error: Exception) -> ModelSupportError | None:
    """The error of a checkpoint that only code of its own can read, where that was the reason."""
    if "trust_remote_code" not in str(error):
        return None
    return ModelSupportError(
        f"{ref!r} needs Python code that comes with it, and such code is never run",
        expected="an architecture and a tokenizer that transformers itself has",
        fix="use a checkpoint whose config.json needs no auto_map, or a newer transformers",
    )


def _attention(config: PreTrainedConfig) -> str:
    """Scaled-dot-product attention, but for models that only eager attention computes."""
    made: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    eager = getattr(config, "attn_logit_softcapping", None) or (
        made is not None and not made._supports_sdpa
    )
    return "eager" if eager else "sdpa"


def _checkpoint_dtype(folder: Path) -> torch.dtype | str:
    """float32 where a checkpoint stores some, which its config may understate; else ``auto``."""
    dtypes = set()
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as tensors:
            dtypes |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return torch.float32 if "F32" in dtypes else "auto"


def find_device(device: str | torch.device) -> torch.device:
    """The device to compute on; ``auto`` is the accelerator where there is one, else the CPU."""
    if device == "auto":
        here = torch.accelerator.is_available()
        return (torch.accelerator.current_accelerator() if here else None) or torch.device("cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise ModelSupportError(
            f"device {device!r} is not available: {first_line(error)}",
            expected="auto, cpu, or an accelerator that torch finds, such as cuda:0",
            fix="name another device, or leave it out",
        ) from error
    return target


def cast(model: torch.nn.Module, dtype: torch.dtype | None) -> bool:
    """Change the float type of what a checkpoint stores, in place.

    What a module computes for itself stays as it is: rotary frequencies in fewer bits would turn
    the keys of later positions by whole radians.

    Args:
        model: The model.
        dtype: A float type; int8 for int8 weights in linear layers, and float32 besides.

    Returns:
        Whether values were rounded.

    Raises:
        ModelSupportError: int8 weights on an accelerator, or of a model without linear layers.
    """
    if dtype is None or getattr(model, "is_quantized", False):
        return False  # a quantised model has the type that it was read in
    if dtype == torch.int8:
        refuse_int8(next(model.parameters()).device)
        _cast_floats(model, torch.float32)
        if not quantize_linears(model):
            raise ModelSupportError(
                "the model has no linear layers of torch, which dtype int8 is for",
                expected="a model with linear layers",
                fix="use dtype bfloat16, or leave it out",
            )
        return True
    return _cast_floats(model, dtype)


def _cast_floats(model: torch.nn.Module, dtype: torch.dtype) -> bool:
    rounded = False
    for module in model.modules():
        computed = module._non_persistent_buffers_set
        if isinstance(module, Int8Linear):  # whose operator takes factors of one type
            computed = computed | {"scale"}
        stored = [buffer for name, buffer in module._buffers.items() if name not in computed]
        for tensor in (*module.parameters(recurse=False), *stored):
            if tensor is not None and tensor.is_floating_point() and tensor.dtype != dtype:
                before, tensor.data = tensor.data, tensor.data.to(dtype)
                rounded = rounded or not torch.equal(tensor.data.to(before.dtype), before)
    return rounded


def find_dtype(
    dtype: str | torch.dtype, device: torch.device, folder: Path | None = None
) -> torch.dtype | None:
    """The dtype to compute in; None stands for the checkpoint's own, int8 for weights alone.

    Args:
        dtype: As it was asked for.
        device: Where the model computes.
        folder: The checkpoint, of which some can compute in their own type alone.

    Raises:
        ModelSupportError: An unknown dtype, or int8 on an accelerator.
    """
    if dtype == "auto":
        own = device.type != "cpu" or (folder is not None and quantisation(folder) in OWN_TYPE)
        return None if own else torch.float32
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if named == torch.int8:
        refuse_int8(device)
    elif not isinstance(named, torch.dtype) or not named.is_floating_point:
        expected = "auto, float32, bfloat16, float16 or int8"
        raise ModelSupportError(f"dtype {dtype!r} is unknown", expected=expected)
    return named


def refuse_int8(device: torch.device) -> None:
    """Refuse int8 weights on an accelerator.

    Raises:
        ModelSupportError: naming what to do.
    """
    if device.type != "cpu":
        raise ModelSupportError(
            f"dtype int8 on {device} is not supported",
            expected="int8 weights on a CPU",
            fix="leave dtype out, use bfloat16, or add device: cpu",
        )
