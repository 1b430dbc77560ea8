"""What tokens see is asked for each layer."""

import torch

from unspoken.agents.models.decoders.masks import causal_layers, seen_rows
from unspoken.channels.kv.geometry import CacheGeometry, LayerGeometry

WINDOWS = (2, 4, None, 2)
KINDS = ("sliding_attention",) * 4
GEOMETRY = CacheGeometry(
    tuple(LayerGeometry(kv_heads=1, head_dim=4, window=window) for window in WINDOWS), 8, 64
)


def test_layers_of_one_kind_see_by_their_own_windows() -> None:
    """Of six rows the last token sees those of its layer's window; equal layers share a mask."""
    seen = seen_rows(KINDS, GEOMETRY, torch.tensor([5]), 6)
    assert [int(mask.sum()) for mask in seen] == [2, 4, 6, 2]
    assert seen[0] is seen[3]


def test_layers_of_one_kind_need_masks_by_their_own_windows() -> None:
    """Three tokens all see each other where the window is that long."""
    assert causal_layers(KINDS, GEOMETRY, 3) == [False, True, True, False]
