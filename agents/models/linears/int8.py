"""Linear layers with weights of one byte, scaled per output; inputs and outputs stay floats."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 32
"""Most rows for which weights are widened within the product; for more, once before it."""

_WIDTH = 32
"""The operator reads past the end of rows that are no multiple of its steps."""

_LARGEST = 127


class Int8Linear(nn.Linear):
    """A linear layer whose weight is ``weight * scale``, an int8 matrix and a factor per row.

    The factors are bfloat16, as the operator takes them, whatever the type of the inputs.
    """

    scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """The product, (…, out_features), of (…, in_features)."""
        rows = input.numel() // self.in_features
        if 0 < rows <= FEW and self._has_operator(input):
            few = input.reshape(rows, -1).to(torch.bfloat16)
            product = torch.ops.aten._weight_int8pack_mm.default(few, self.weight, self.scale)
            output: Tensor = product.to(input.dtype).view(*input.shape[:-1], -1)
        else:
            output = F.linear(input, self.widened().to(input.dtype))
        bias: Tensor | None = self.bias
        return output if bias is None else output + bias

    def widened(self) -> Tensor:
        """The weight in float32, (out_features, in_features)."""
        return self.weight.float().mul_(self.scale.float()[:, None])

    def _has_operator(self, input: Tensor) -> bool:
        return (
            not torch.is_grad_enabled()
            and input.device.type == "cpu"
            and self.in_features % _WIDTH == 0
            and _operator_serves()
        )


@cache
def _operator_serves() -> bool:
    """Whether torch's product with int8 weights is there and right; its name is private."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randint(-_LARGEST, _LARGEST, (8, _WIDTH), generator=source, dtype=torch.int8)
    rows = torch.randn(2, _WIDTH, generator=source).to(torch.bfloat16)
    factors = torch.full((8,), 2.0**-7, dtype=torch.bfloat16)
    expected = F.linear(rows.float(), weight.float()) * factors.float()
    try:
        product = torch.ops.aten._weight_int8pack_mm.default(rows, weight, factors).float()
    except (AttributeError, RuntimeError):
        return False
    return bool((product - expected).abs().max() <= 0.01 * expected.abs().max())


@torch.no_grad()
def quantize_linears(model: nn.Module) -> int:
    """Make the linear layers of a model compute with int8 weights, in place.

    Embeddings, norms and biases stay as they are. A vocabulary's product that shares its weight
    with the embedding gets a weight of its own.

    Args:
        model: Any model, in memory, in a float type.

    Returns:
        How many layers there are, those that were int8 before included.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    layers = [layer for layer in layers if type(layer) in (nn.Linear, Int8Linear)]
    for layer in layers:
        if type(layer) is nn.Linear:
            weight, scale = _quantized(layer.weight.detach())
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layer.register_buffer("scale", scale)
            layer.__class__ = Int8Linear
    return len(layers)


def has_int8(model: nn.Module) -> bool:
    """Whether a model has int8 linear layers."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def _quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight's int8 matrix, and its factor per output."""
    wide = weight.float()
    scale = (wide.abs().amax(dim=1) / _LARGEST).to(torch.bfloat16)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    values = (wide / scale.float()[:, None]).round().clamp(-_LARGEST, _LARGEST)
    return values.to(torch.int8), scale
