"""One token of each of several turns in one forward, for models that take no packed rows."""

from collections.abc import Sequence as Listed
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unspoken.agents.models.caches.stacked import stacked_class
from unspoken.agents.models.hf_cache import ContextCache

if TYPE_CHECKING:
    from unspoken.agents.models.hf import Backbone

_CONTEXTS, _STEPS = (9, 6, 3), 2
"""Tokens of the contexts that a model is tried with, and how many of the last are steps."""


@torch.no_grad()
def stacked_step(backbone: "Backbone", caches: Listed[ContextCache], ids: Tensor) -> Tensor:
    """Compute one more token of each context; nothing changes where the forward fails.

    Args:
        backbone: The model's layers.
        caches: Contexts that each hold at least a token, without holes.
        ids: A token for each, (contexts,).

    Returns:
        The logits after each token, (contexts, vocabulary).
    """
    with backbone.computing():
        lengths = [cache.length for cache in caches]
        stacked = stacked_class(backbone.calls.own_cache)([cache.rows for cache in caches])
        logits = backbone.next_logits(backbone.calls.step(ids, lengths, stacked))
        stacked.keep()
        like = ids.new_empty(0, dtype=backbone.model.dtype)
        for cache, length in zip(caches, lengths, strict=True):
            cache.filled(length + 1, like)
    return logits


@torch.no_grad()
def refusal_of_steps(backbone: "Backbone") -> str | None:
    """Why steps of several turns are not computed as alone; None where they are.

    Contexts of several lengths are read but for their last tokens, which are computed together. An
    architecture that has its positions or masks otherwise shows here.
    """
    top = int(backbone.config.vocab_size)
    device = backbone.device
    contexts = [
        torch.tensor([(3 + 7 * row + 5 * at) % top for at in range(count)], device=device)
        for row, count in enumerate(_CONTEXTS)
    ]
    try:
        with backbone.computing():
            alone = torch.stack([_alone(backbone, ids) for ids in contexts], dim=1)
            caches = [_read(backbone, ids) for ids in contexts]
            steps = torch.stack([ids[-_STEPS:] for ids in contexts], dim=1)
            together = torch.stack([stacked_step(backbone, caches, step) for step in steps])
    except Exception as error:  # an architecture's own code may raise anything here
        return f"steps of several turns cannot be computed together: {type(error).__name__}"
    apart = (alone.float() - together.float()).abs().max() / alone.float().std().clamp(min=1e-6)
    if bool(apart <= backbone.rounding):
        return None
    return "steps of several turns are computed otherwise together"


def _read(backbone: "Backbone", ids: Tensor) -> ContextCache:
    cache = backbone.cache_class(backbone.geometry, len(ids))
    backbone.forward(ids[:-_STEPS], cache, keep=0)
    return cache


def _alone(backbone: "Backbone", ids: Tensor) -> Tensor:
    """Logits after each of the last tokens, (steps, vocabulary)."""
    cache, rows = _read(backbone, ids), []
    for one in torch.split(ids[-_STEPS:], 1):
        logits = backbone.forward(one, cache)
        assert logits is not None  # it was asked for one
        rows.append(logits[-1])
    return torch.stack(rows)
