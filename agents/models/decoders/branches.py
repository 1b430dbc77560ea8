"""Several continuations of one context in one pass, each as if it alone followed the context.

All their tokens stand in one row behind the context. Positions and masks say where each token is
and what it sees. The last tokens of all stand at the end of the row, so that logits are computed of
them alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unspoken.agents.models.decoders.masks import masked, seen_rows

if TYPE_CHECKING:
    from unspoken.agents.models.hf import Backbone
    from unspoken.agents.models.hf_cache import ContextCache


def branch_logits(
    backbone: "Backbone", branches: Sequence[Tensor], last: Sequence[int], cache: "ContextCache"
) -> list[Tensor]:
    """Logits after the last tokens of each continuation, (its `last`, vocabulary) each.

    Args:
        backbone: Computes them; all its layers keep rows alone.
        branches: Ids of the continuations, (tokens,) each, on its device.
        last: Of how many tokens of each logits are wanted, one at least.
        cache: The context. The row is appended to it, so it serves nothing else afterwards.
    """
    start, device = cache.length, branches[0].device
    ends = [len(ids) - count for ids, count in zip(branches, last, strict=True)]
    parts = [(number, 0, end) for number, end in enumerate(ends)]
    parts += [(number, end, len(branches[number])) for number, end in enumerate(ends)]
    ids = torch.cat([branches[number][first:stop] for number, first, stop in parts])
    positions = torch.cat([torch.arange(start + a, start + b, device=device) for _, a, b in parts])
    owners = torch.cat([torch.full((b - a,), number, device=device) for number, a, b in parts])
    masks = _masks(backbone, positions, owners, start)
    # A layer with a window gives attention its rows from the first on that the next token sees.
    masks = [mask[..., rows.visible_from() :] for mask, rows in zip(masks, cache.rows, strict=True)]
    eager, dtype = backbone.config._attn_implementation == "eager", backbone.model.dtype
    count = sum(last)
    with backbone.computing(), masked(backbone.layers, masks, eager=eager, dtype=dtype):
        inputs = backbone.calls.inputs(ids, positions, cache)
        logits = backbone.logits(inputs | {"logits_to_keep": count})[-count:]
    return list(torch.split(logits, list(last)))


def _masks(backbone: "Backbone", positions: Tensor, owners: Tensor, start: int) -> list[Tensor]:
    """By layer what each token sees, bool (1, 1, tokens, rows): the context, and its own branch.

    Args:
        backbone: Whose layers they are.
        positions: Where each token is, (tokens,).
        owners: The number of its branch, (tokens,).
        start: Rows of the context.
    """
    places = torch.cat([torch.arange(start, device=positions.device), positions])
    own = owners[:, None] == owners
    own = torch.nn.functional.pad(own, (start, 0), value=True)
    by_position = seen_rows(
        backbone.kinds, backbone.geometry, positions, start + len(positions), backbone.chunk
    )
    seen = {id(mask): mask[..., places] & own for mask in by_position}
    return [seen[id(mask)] for mask in by_position]
