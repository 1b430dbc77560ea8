"""How each layer of a model puts positions into its keys, proved before any key is moved.

Some architectures rotate the keys of some layers only, or rotate otherwise than
`unspoken.channels.kv.rope` does. No entry of a configuration says so reliably. So a model is run on
the same tokens at other positions, each layer on the input it had before. Keys then differ by their
positions alone, and each layer shows what it does with them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unspoken.agents.models.hf import Backbone, Capture
from unspoken.agents.models.hf_cache import ContextCache
from unspoken.agents.models.notes import KeyPositions
from unspoken.channels.kv.geometry import LayerGeometry
from unspoken.channels.kv.rope import Rotary, shift

TOKENS = 6
DISTANCES = (7, 251)
"""How far the tokens are moved."""

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 0.01}
COARSE = 0.05
"""Largest error, as a share of a pair of rotated dimensions: rounding, and of angles too."""

_OTHER: KeyPositions = "other"
_ROTATIONS: Mapping[KeyPositions, bool] = {"rotated": False, "interleaved": True}
"""What a layer may do, and whether neighbours are rotated together then."""


def prove_positions(backbone: Backbone) -> tuple[KeyPositions, ...]:
    """What each layer of a model does with positions; three passes over a few tokens."""
    try:
        return _proved(backbone)
    except Exception:  # an architecture's own code may raise anything when it is given positions
        return tuple(_OTHER for _ in backbone.geometry.layers)


@torch.no_grad()
def _proved(backbone: Backbone) -> tuple[KeyPositions, ...]:
    layers = backbone.geometry.layers
    indexed = any(layer.indexer for layer in layers)
    if backbone.geometry.recurrent or indexed:  # what they keep cannot be moved
        return tuple(_OTHER for _ in layers)
    vocabulary = int(backbone.config.vocab_size)
    ids = torch.arange(3, 3 + TOKENS, device=backbone.device) % vocabulary
    room = backbone.geometry.max_positions - TOKENS
    with backbone.computing():
        wanted: Capture = {number: [] for number in range(len(layers))}
        near = ContextCache(backbone.geometry, TOKENS)
        backbone.forward(ids, near, keep=0, capture=wanted)
        inputs = {number: parts[0] for number, parts in wanted.items()}
        seen = [
            _at_distance(backbone, ids, distance, inputs, near)
            for distance in sorted({min(distance, room) for distance in DISTANCES})
        ]
    found: list[KeyPositions] = [
        places[0] if len(set(places)) == 1 else _OTHER for places in zip(*seen, strict=True)
    ]
    if {"rotated", "interleaved"} <= set(found):  # a model is taken to turn keys in one way
        return tuple(_OTHER if places == "interleaved" else places for places in found)
    return tuple(found)


def _at_distance(
    backbone: Backbone, ids: Tensor, distance: int, inputs: Mapping[int, Tensor], near: ContextCache
) -> list[KeyPositions]:
    positions = torch.arange(distance, distance + len(ids), device=ids.device)
    far = ContextCache(backbone.geometry, distance + len(ids))
    embedded: Capture = {0: []}
    with _fed(backbone.layers, inputs):
        backbone.fill(ids, positions, int(positions[-1]), far, keep=0, capture=embedded)
    layers = backbone.geometry.layers
    if not torch.equal(embedded[0][0], inputs[0]):  # the embeddings hold positions
        return ["other"] * len(layers)
    return [
        _compared(backbone, layer, near.rows[number], far.rows[number], distance)
        for number, layer in enumerate(layers)
    ]


def _compared(
    backbone: Backbone, layer: LayerGeometry, near: Any, far: Any, distance: int
) -> KeyPositions:
    if not layer.kv_heads:
        return "bare"
    keys, values = near.keys[0, :, :TOKENS], near.values[0, :, :TOKENS]
    moved_keys, moved_values = (
        rows[0, :, distance:][:, :TOKENS] for rows in (far.keys, far.values)
    )
    if layer.latent:  # their second part is what is rotated
        keys, values, moved_keys, moved_values = values, keys, moved_values, moved_keys
    tolerance = TOLERANCE.get(keys.dtype, COARSE)
    if not _equal(values, moved_values, None, tolerance):
        return "other"
    rotary = None if layer.rope is None else backbone.rotary(layer.rope)
    if rotary is not None and not rotary.dynamic:
        for place, interleaved in _ROTATIONS.items():
            tried = replace(rotary, interleaved=interleaved)
            if _equal(shift(keys, distance, tried), moved_keys, tried, tolerance):
                return place
    return "bare" if _equal(keys, moved_keys, None, tolerance) else "other"


def _equal(expected: Tensor, actual: Tensor, rotary: Rotary | None, tolerance: float) -> bool:
    """Whether rows are equal but for rounding; errors are held to each dimension's own size.

    Outliers of a few dimensions would hide the errors of all others. Two dimensions that a rotation
    mixes are taken together.
    """
    error = (expected.float() - actual.float()).abs().amax(1)
    size = torch.maximum(expected.float().abs().amax(1), actual.float().abs().amax(1))
    if rotary is not None:
        turned, rest = size[:, : rotary.dimensions], size[:, rotary.dimensions :]
        if rotary.interleaved:
            pairs = torch.maximum(turned[:, 0::2], turned[:, 1::2]).repeat_interleave(2, dim=1)
        else:
            half = rotary.dimensions // 2
            pairs = torch.maximum(turned[:, :half], turned[:, half:]).repeat(1, 2)
        size = torch.cat((pairs, rest), dim=1)
    return bool((error <= tolerance * (size + 0.01 * size.mean())).all())


@contextmanager
def _fed(layers: nn.ModuleList, inputs: Mapping[int, Tensor]) -> Iterator[None]:
    """Give each layer but the first an input of its own, whatever the one before it made."""

    def feed(rows: Tensor) -> Any:
        def replaced(module: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (rows[None], *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": rows[None]}

        return replaced

    handles = [
        layers[number].register_forward_pre_hook(feed(rows), with_kwargs=True)
        for number, rows in inputs.items()
        if number
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
