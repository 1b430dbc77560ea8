"""Choosing the next token, with transformers' own logits processors."""

from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from unspoken.agents.engines.base import Sampling

__all__ = ["Sampler"]


class Sampler:
    """Greedy at temperature 0, else temperature, top-k and top-p in transformers' order, with a
    seed of its own.

    Args:
        settings: How to choose.
        device: Where the logits are.
    """

    def __init__(self, settings: Sampling, device: torch.device) -> None:
        self._greedy = settings.temperature == 0
        self._warpers = LogitsProcessorList()
        self._generator: torch.Generator | None = None
        if self._greedy:
            return
        self._warpers.append(TemperatureLogitsWarper(float(settings.temperature)))
        if settings.top_k is not None:
            self._warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p is not None:
            self._warpers.append(TopPLogitsWarper(settings.top_p))
        self._generator = torch.Generator(device=device)
        if settings.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(settings.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """The next token, shape (1,), of logits (vocabulary,); it stays on the device."""
        if self._greedy:
            return logits.argmax(dim=-1, keepdim=True)
        before: Any = torch.empty(
            1, 0, dtype=torch.long, device=logits.device
        )  # no warper reads it
        scores: Any = logits[None].float()
        scores = self._warpers(before, scores)
        return torch.multinomial(scores.softmax(dim=-1)[0], 1, generator=self._generator)
