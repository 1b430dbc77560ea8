"""The proof that a model with recurrent layers reads on after what it has read."""

from collections.abc import Sequence as Listed
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unspoken.agents.models.hf_cache import ContextCache
from unspoken.channels.errors import ModelSupportError

if TYPE_CHECKING:
    from unspoken.agents.models.hf import Backbone

_WAYS = (((4, 3), False), ((4, 1, 1, 1), True))
"""Tokens of each pass, and whether passes after the first are of one token each."""


@torch.no_grad()
def reads_singly(backbone: "Backbone") -> bool:
    """Whether a model reads on rightly one token at a time alone.

    It reads some tokens at once, and again in parts, each after a snapshot of the one before. An
    architecture that begins anew with each pass, or keeps something elsewhere, shows here.

    Raises:
        ModelSupportError: It does not read on rightly at all.
    """
    whole = _read(backbone, (7,))
    spread = whole.std().clamp(min=1e-6)
    tolerance = backbone.rounding
    for parts, singly in _WAYS:
        try:
            apart = (_read(backbone, parts) - whole).abs().max() / spread
        except Exception:  # an architecture's own code may raise anything here
            continue
        if apart <= tolerance:
            return singly
    raise ModelSupportError(
        f"a {backbone.config.model_type} model does not go on from what it has read: its logits "
        "are others than in one pass",
        expected="a model whose cache holds all that it keeps of a context",
        fix="use another model",
    )


def _read(backbone: "Backbone", parts: Listed[int]) -> Tensor:
    """Logits after some tokens, read in passes of so many."""
    total = sum(parts)
    ids = torch.arange(3, 3 + total, device=backbone.device) % int(backbone.config.vocab_size)
    cache = backbone.cache_class(backbone.geometry, total)
    logits = None
    for part in parts:
        start = cache.length
        if start:
            cache.mark()
            cache.resume(start)
        logits = backbone.forward(ids[start : start + part], cache)
    assert logits is not None  # the last pass gives some
    return logits[-1].float()


def read_singly(
    backbone: "Backbone", ids: Tensor, cache: ContextCache, keep: int, capture: Any
) -> Tensor | None:
    """`Backbone.forward`, one token at a time."""
    first = len(ids) - keep
    rows = [
        backbone.forward(one, cache, keep=int(at >= first), capture=capture)
        for at, one in enumerate(torch.split(ids, 1))
    ]
    kept = [row for row in rows if row is not None]
    return torch.cat(kept) if kept else None
