"""How a decoder of transformers is called: the name of its cache, and the class that must have."""

import sys
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel

from unspoken.channels.kv.transfer import numbers_at


class DecoderCalls:
    """How one model is called.

    Args:
        model: The model.
        base: Its decoder, without the head.

    Attributes:
        own_cache: The class of cache that it insists on, where it has one of its own.
    """

    def __init__(self, model: PreTrainedModel, base: nn.Module) -> None:
        accepted = signature(base.forward).parameters
        self._recurrent = "past_key_values" not in accepted and "cache_params" in accepted
        self.own_cache = _own_cache(model)

    def inputs(self, ids: Tensor, positions: Tensor, cache: Cache) -> dict[str, Any]:
        """The arguments of a forward over `ids`, (tokens,), at their positions."""
        inputs: dict[str, Any] = {"input_ids": ids[None], "use_cache": True}
        if self._recurrent:  # it knows no positions
            return {**inputs, "cache_params": cache}
        return {**inputs, "past_key_values": cache, "position_ids": positions[None]}

    def step(self, ids: Tensor, lengths: Sequence[int], cache: Cache) -> dict[str, Any]:
        """The arguments of a forward over one token of each of several contexts.

        Args:
            ids: The tokens, (contexts,).
            lengths: Tokens that each context has before.
            cache: Their rows, which end together.
        """
        before = numbers_at(lengths, ids.device)[:, None]
        longest = max(lengths)
        mask = torch.arange(longest + 1, device=ids.device) >= longest - before
        inputs: dict[str, Any] = {"input_ids": ids[:, None], "use_cache": True}
        if self._recurrent:
            return {**inputs, "cache_params": cache}
        return {
            **inputs,
            "attention_mask": mask.long(),
            "past_key_values": cache,
            "position_ids": before,
        }

    def plain_cache(self, config: PreTrainedConfig) -> Cache:
        """The cache that transformers makes for it."""
        return DynamicCache(config=config) if self.own_cache is None else self.own_cache()


def _own_cache(model: PreTrainedModel) -> type[DynamicCache] | None:
    """The class of cache that keeps linear attention's state in a list, where a model has one."""
    for found in vars(sys.modules[type(model).__module__]).values():
        if isinstance(found, type) and hasattr(found, "set_linear_cache"):
            return found
    return None
