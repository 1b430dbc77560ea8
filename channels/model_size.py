"""How large a model is."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Size:
    """The numbers among a model's weights.

    Attributes:
        weights: All of them.
        products: Those that every token is multiplied with: without embeddings and head.
    """

    weights: int
    products: int


@runtime_checkable
class OfTorch(Protocol):
    """A model whose weights are those of a module."""

    hf: nn.Module


def size_of(model: object) -> Size | None:
    """The size of a model; None of one that shows no module."""
    return size_of_module(model.hf) if isinstance(model, OfTorch) else None


def size_of_module(module: nn.Module) -> Size:
    """The size of a causal language model; one on the meta device will do."""
    weights = {id(weight): weight.numel() for weight in module.parameters()}
    # Linears of one byte keep their weights in buffers.
    bytes_of = (buffer for buffer in module.buffers() if buffer.dtype == torch.int8)
    weights |= {id(buffer): buffer.numel() for buffer in bytes_of}
    tables = {id(table.weight) for table in module.modules() if isinstance(table, nn.Embedding)}
    head = getattr(module, "get_output_embeddings", lambda: None)()
    tables |= {id(weight) for weight in head.parameters()} if head is not None else set()
    kept = sum(count for weight, count in weights.items() if weight not in tables)
    return Size(sum(weights.values()), kept)
