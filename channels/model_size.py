"""How large a model is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

READING = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_top_k",
    "moe_k",
)
"""What configurations call the number of experts that read a token."""


@dataclass(frozen=True, slots=True)
class Size:
    """The numbers among a model's weights.

    Attributes:
        weights: All of them.
        products: Those that a token is multiplied with: without embeddings and head, and of a
            mixture of experts as many as read a token.
        idle: Those of the experts that do not read it. A few tokens together need most of them.
    """

    weights: int
    products: int
    idle: int = 0


@runtime_checkable
class OfTorch(Protocol):
    """A model whose weights are those of a module."""

    hf: nn.Module


def size_of(model: object) -> Size | None:
    """The size of a model; None of one that shows no module, or not what a token is read by."""
    return size_of_module(model.hf) if isinstance(model, OfTorch) else None


def size_of_module(module: nn.Module) -> Size | None:
    """The size of a causal language model; one on the meta device will do.

    None where it has experts, and its configuration does not say how many of them read a token.
    """
    weights = {id(weight): weight.numel() for weight in _weights(module)}
    tables = {id(table.weight) for table in module.modules() if isinstance(table, nn.Embedding)}
    head = getattr(module, "get_output_embeddings", lambda: None)()
    tables |= {id(weight) for weight in head.parameters()} if head is not None else set()
    kept = sum(count for weight, count in weights.items() if weight not in tables)
    idle = 0
    for experts in _experts(module):
        count, reading = getattr(experts, "num_experts", None), _reading(module)
        count = len(experts) if isinstance(experts, nn.ModuleList | nn.ModuleDict) else count
        if not isinstance(count, int) or reading is None or not 0 < reading <= count:
            return None
        idle += sum(weight.numel() for weight in _weights(experts)) * (count - reading) // count
    return Size(sum(weights.values()), kept - idle, idle)


def _weights(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    # Linears of one byte keep their weights in buffers.
    yield from (buffer for buffer in module.buffers() if buffer.dtype == torch.int8)


def _experts(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that hold experts of which each token is read by some; shared ones read all."""
    for name, part in module.named_modules():
        kind = type(part).__name__
        if name.endswith(".experts") or (kind.endswith("Experts") and "Shared" not in kind):
            yield part


def _reading(module: nn.Module) -> int | None:
    """How many experts read a token."""
    config = getattr(module, "config", None)
    own = getattr(config, "get_text_config", lambda: config)()
    named = (getattr(own, name, None) for name in READING)
    return next((count for count in named if isinstance(count, int)), None)
