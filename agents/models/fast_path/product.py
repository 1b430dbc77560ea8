"""Linear layers that read one input, as one product."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unspoken.agents.models.linears.copies import Copy
from unspoken.agents.models.linears.onednn import multiply
from unspoken.agents.models.linears.packed import PackedLinear


class Product:
    """The outputs of linear layers side by side.

    Args:
        layers: They, of torch's own class or packed.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.layers = tuple(layers)
        self.bias = _biases(self.layers)
        self.copied: Copy | None = _copy_of_all(self.layers)

    def __call__(self, rows: Tensor) -> Tensor:
        """(rows, in) to (rows, all outputs)."""
        if self.copied is not None:
            return multiply(rows, self.copied.packed, self.bias, pads=self.copied.pads)
        outputs = [layer(rows) for layer in self.layers]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def _copy_of_all(layers: Sequence[nn.Linear]) -> Copy | None:
    """The packed copy of these layers, as they are, and no others; None where there is none."""
    copies = {layer.copied if isinstance(layer, PackedLinear) else None for layer in layers}
    (copied, *others) = copies
    if copied is None or others or len(copied.of) != len(layers):
        return None
    fresh = all(copied.is_of(number, layer.weight) for number, layer in enumerate(layers))
    return copied if fresh else None


def _biases(layers: Sequence[nn.Linear]) -> Tensor | None:
    biases: list[Tensor | None] = [layer.bias for layer in layers]
    if all(bias is None for bias in biases):
        return None
    parts = [
        layer.weight.new_zeros(layer.out_features) if bias is None else bias.detach()
        for layer, bias in zip(layers, biases, strict=True)
    ]
    return torch.cat(parts)
