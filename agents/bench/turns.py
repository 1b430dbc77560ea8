"""The tokens that transformers' own ``generate`` writes."""

from collections.abc import Sequence
from typing import Any

import torch

from unspoken.agents.models.model import LocalModel


@torch.no_grad()
def generate(
    model: LocalModel, prompts: Sequence[Sequence[int]], tokens: int, **settings: Any
) -> list[tuple[int, ...]]:
    """Up to `tokens` new ids after each prompt, all prompts in one batch; greedy by default.

    Args:
        model: The model.
        prompts: Ids of each prompt; shorter ones are padded on the left.
        tokens: Most new tokens.
        settings: Further ones of ``generate``.
    """
    longest = max(map(len, prompts))
    pad = model.tokenizer.pad_token_id or 0
    padded = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    hf: Any = model.hf
    with model.weights.lock:  # as transformers computes it
        written = hf.generate(
            input_ids=torch.tensor(padded, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=tokens,
            pad_token_id=pad,
            **{"do_sample": False, **settings},
        )
    return [tuple(row[longest:].tolist()) for row in written]


def until_stop(model: LocalModel, ids: Sequence[int]) -> tuple[int, ...]:
    """The ids before the first that ends a turn."""
    end = next((index for index, token in enumerate(ids) if token in model.stop_ids), len(ids))
    return tuple(ids[:end])
