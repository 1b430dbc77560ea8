"""Weights of a bridge on disk: large matrices in int8 with a scale per group, the rest as is."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from unspoken.channels.errors import BridgeError

Module = TypeVar("Module", bound=nn.Module)

GROUP = 64
"""Neighbouring weights that share a scale."""

SMALLEST = 4096
SCALE = ".scale"


def quantize(weights: Mapping[str, Tensor], dtype: str = "int8") -> dict[str, Tensor]:
    """Tensors as they are stored, on the CPU.

    Args:
        weights: Float tensors by name.
        dtype: ``int8``, or ``float32`` to store all as they are.
    """
    quantized = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().float().cpu().contiguous()
        if dtype == "float32" or not _is_quantized(tensor.shape):
            quantized[name] = tensor
            continue
        flat = tensor.flatten()
        groups = torch.nn.functional.pad(flat, (0, -flat.numel() % GROUP)).reshape(-1, GROUP)
        scale = (groups.abs().amax(dim=1) / 127).clamp_min(6e-8).to(torch.float16)
        levels = torch.round(groups / scale.float()[:, None]).clamp(-127, 127).to(torch.int8)
        quantized[name] = levels.flatten()[: flat.numel()].reshape(tensor.shape)
        quantized[name + SCALE] = scale
    return quantized


def quantized_bytes(shape: torch.Size) -> int:
    """Bytes that a tensor takes as ``int8``."""
    count = shape.numel()
    return count + 2 * -(-count // GROUP) if _is_quantized(shape) else 4 * count


def _is_quantized(shape: torch.Size) -> bool:
    return len(shape) > 1 and shape.numel() >= SMALLEST


def load_quantized(build: Callable[[], Module], tensors: Mapping[str, Tensor], what: str) -> Module:
    """A module with stored weights.

    Args:
        build: Makes the module of a configuration.
        tensors: Its weights as they are stored.
        what: What to call them in an error.

    Raises:
        BridgeError: The weights are not those that the configuration describes.
    """
    try:
        with torch.device("meta"):  # what a configuration claims costs no memory
            claimed = {name: tensor.shape for name, tensor in build().state_dict().items()}
        weights = dequantize(tensors)
        _require_shapes(claimed, weights)
        module = build()
        module.load_state_dict(weights, strict=True)
    except (
        TypeError,
        AttributeError,
        LookupError,
        ValueError,
        RuntimeError,
        OverflowError,
    ) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise BridgeError(
            f"the bridge's {what} do not fit its configuration: {said}",
            expected="the weights that its manifest describes",
            fix="pull the bridge again, or fit it again",
        ) from error
    return module.eval().requires_grad_(False)


def _require_shapes(claimed: Mapping[str, torch.Size], weights: Mapping[str, Tensor]) -> None:
    for name in sorted(claimed.keys() | weights.keys()):
        given = weights[name].shape if name in weights else None
        if given != claimed.get(name):
            wanted = tuple(claimed[name]) if name in claimed else "no such weights"
            stored = "missing" if given is None else tuple(given)
            raise ValueError(f"{name} is {stored}, and it says {wanted}")


def dequantize(quantized: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 tensors from what is stored.

    Raises:
        BridgeError: An int8 tensor whose scales are missing or too few.
    """
    weights = {}
    for name, tensor in quantized.items():
        if name.endswith(SCALE):
            continue
        if tensor.dtype != torch.int8:
            weights[name] = tensor.float()
            continue
        scale = quantized.get(name + SCALE)
        groups = -(-tensor.numel() // GROUP)
        if scale is None or scale.shape != (groups,):
            raise BridgeError(
                f"the int8 weights {name!r} have "
                f"{'no scales' if scale is None else f'{len(scale)} scales'}",
                expected=f"{groups} scales, one per {GROUP} weights",
                fix="fit the bridge again, or pull it again",
            )
        flat = torch.nn.functional.pad(tensor.flatten().float(), (0, -tensor.numel() % GROUP))
        flat = (flat.reshape(-1, GROUP) * scale.float()[:, None]).flatten()
        weights[name] = flat[: tensor.numel()].reshape(tensor.shape)
    return weights
