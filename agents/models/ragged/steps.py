"""One token of each of several turns in one forward, for models that take no packed rows."""

from bisect import bisect_right
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


def most_stacked(backbone: "Backbone") -> int:
    """Most rows of a context whose steps are worth computing with those of others.

    A step in company writes what each token sees once more, and moves recurrent states to and fro;
    alone it reads the weights for itself. Two turns gain by company as long as a turn copies a
    quarter of what it spares, since a copy is written, read and padded. Stacked experts do not
    count as weights: a token reads few of them.
    """
    geometry, itemsize = backbone.geometry, backbone.model.dtype.itemsize
    weights = sum(one.nbytes for one in backbone.model.parameters() if one.ndim < 3)
    room = weights // 4 - 2 * geometry.snapshot_bytes
    counts = range(1, geometry.max_positions + 1)
    return bisect_right(counts, room, key=lambda rows: geometry.seen_bytes(rows, itemsize))


@torch.no_grad()
def refusal_of_steps(backbone: "Backbone") -> str | None:
    """Why steps of several turns are not computed as alone; None where they are.

    Contexts of several lengths are read but for their last tokens, which are computed together. An
    architecture that has its positions or masks otherwise shows here. Where layers have a window,
    one context is beyond it, and the steps of another reach its end.
    """
    top = int(backbone.config.vocab_size)
    device = backbone.device
    contexts = [
        torch.tensor([(3 + 7 * row + 5 * at) % top for at in range(count)], device=device)
        for row, count in enumerate(_CONTEXTS)
    ]
    more = _repeated(backbone)
    try:
        with backbone.computing():
            pairs = list(zip(contexts, more, strict=True))
            alone = torch.stack([_alone(backbone, *pair) for pair in pairs], dim=1)
            caches = [_read(backbone, *pair) for pair in pairs]
            steps = torch.stack([ids[-_STEPS:] for ids in contexts], dim=1)
            together = torch.stack([stacked_step(backbone, caches, step) for step in steps])
    except Exception as error:  # an architecture's own code may raise anything here
        return f"steps of several turns cannot be computed together: {type(error).__name__}"
    apart = (alone.float() - together.float()).abs().max() / alone.float().std().clamp(min=1e-6)
    if bool(apart <= backbone.rounding):
        return None
    return "steps of several turns are computed otherwise together"


def _repeated(backbone: "Backbone") -> tuple[int, ...]:
    """How many rows each context has besides those that are read, so that windows are full."""
    geometry = backbone.geometry
    most = max(geometry.max_positions - max(_CONTEXTS), 0)
    window = min(max(layer.window or 0 for layer in geometry.layers), most)
    return window, max(window - 1 - (_CONTEXTS[1] - _STEPS), 0), 0


def _read(backbone: "Backbone", ids: Tensor, more: int) -> ContextCache:
    """A context read but for its last tokens, whose rows then stand there over and over.

    What a window leaves out shows by any rows, and to read as many tokens would take long.
    """
    cache = backbone.cache_class(backbone.geometry, len(ids) + more)
    backbone.forward(ids[:-_STEPS], cache, keep=0)
    count = cache.length
    again = torch.arange(more, device=ids.device) % count
    for rows in cache.rows:
        rows.keys[:, :, count : count + more] = rows.keys[:, :, again]
        rows.values[:, :, count : count + more] = rows.values[:, :, again]
        rows.length += more
    return cache


def _alone(backbone: "Backbone", ids: Tensor, more: int) -> Tensor:
    """Logits after each of the last tokens, (steps, vocabulary)."""
    cache, rows = _read(backbone, ids, more), []
    for one in torch.split(ids[-_STEPS:], 1):
        logits = backbone.forward(one, cache)
        assert logits is not None  # it was asked for one
        rows.append(logits[-1])
    return torch.stack(rows)
