"""A checkpoint read by transformers, and the device and float type to compute in."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from unspoken.agents.models.quiet import Stage, first_line, quiet_transformers, silent
from unspoken.channels.errors import ModelReferenceError, ModelSupportError


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
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                trust_remote_code=False,  # left out, transformers asks on the terminal
                weights_only=True,  # a pickle of anything but tensors is refused
                dtype=dtype or _checkpoint_dtype(folder),
                attn_implementation=_attention(folder),
            )
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


def strangers_code(ref: str, error: Exception) -> ModelSupportError | None:
    """The error of a checkpoint that only code of its own can read, where that was the reason."""
    if "trust_remote_code" not in str(error):
        return None
    return ModelSupportError(
        f"{ref!r} needs Python code that comes with it, and such code is never run",
        expected="an architecture and a tokenizer that transformers itself has",
        fix="use a checkpoint whose config.json needs no auto_map, or a newer transformers",
    )


def _attention(folder: Path) -> str:
    """Scaled-dot-product attention, but for models whose soft cap only eager attention has."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


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


def cast(model: torch.nn.Module, dtype: torch.dtype | None) -> None:
    """Change the float type of what a checkpoint stores, in place.

    What a module computes for itself stays as it is: rotary frequencies in fewer bits would turn
    the keys of later positions by whole radians.
    """
    if dtype is None:
        return
    for module in model.modules():
        computed = module._non_persistent_buffers_set
        stored = [buffer for name, buffer in module._buffers.items() if name not in computed]
        for tensor in (*module.parameters(recurse=False), *stored):
            if tensor is not None and tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def find_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype | None:
    """The dtype to compute in; None stands for the checkpoint's own."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else None
    named = getattr(torch, dtype, None)
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        expected = "auto, float32, bfloat16 or float16"
        raise ModelSupportError(f"dtype {dtype!r} is unknown", expected=expected)
    return named
