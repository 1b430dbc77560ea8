"""What each token sees on layers of each kind, and masks put in the place of a model's own."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from unspoken.channels.kv.geometry import CacheGeometry

CHUNKED = "chunked_attention"
"""Layers that see the tokens of their own chunk alone, as most of Llama 4's do."""


def seen_rows(
    kinds: Sequence[str],
    geometry: CacheGeometry,
    positions: Tensor,
    length: int,
    chunk: int | None = None,
) -> list[Tensor]:
    """By layer, which of `length` rows a token sees, bool (1, 1, tokens, length).

    Layers of one kind and window have one mask together.

    Args:
        kinds: The kind of each layer.
        geometry: The shape of the layers, with their windows.
        positions: Where the tokens are, (tokens,).
        length: Rows that there are.
        chunk: Tokens of a chunk, for layers that see their own chunk alone.
    """
    rows = torch.arange(length, device=positions.device)[None, :]
    own = positions[:, None]
    seen: dict[tuple[str, int | None], Tensor] = {}
    looks = [(kind, layer.window) for kind, layer in zip(kinds, geometry.layers, strict=True)]
    for kind, window in set(looks):
        near = rows <= own
        if window is not None:
            near &= rows > own - window
        if kind == CHUNKED and chunk is not None:
            near &= rows >= own - own % chunk
        seen[kind, window] = near[None, None]
    return [seen[look] for look in looks]


def causal_layers(
    kinds: Sequence[str], geometry: CacheGeometry, stop: int, chunk: int | None = None
) -> list[bool]:
    """By layer, whether its first `stop` tokens see all before them, so that it needs no mask."""
    return [
        (layer.window is None or layer.window >= stop)
        and (kind != CHUNKED or chunk is None or chunk >= stop)
        for kind, layer in zip(kinds, geometry.layers, strict=True)
    ]


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to the scores: the least number where a row is not seen."""
    zeros = torch.zeros_like(allowed, dtype=dtype)
    return zeros.masked_fill(~allowed, torch.finfo(dtype).min)


@contextmanager
def masked(
    layers: nn.ModuleList, masks: Sequence[Tensor], *, eager: bool, dtype: torch.dtype
) -> Iterator[None]:
    """Each layer gets a mask of ours while the block runs, whatever the model made for it.

    Models make their masks for tokens that follow their cache. Tokens between rows that stand
    already need others. A mask has the form of the one in whose place it stands.

    Args:
        layers: The layers.
        masks: What is seen on each, bool (1, 1, tokens, rows).
        eager: Whether attention is computed without a kernel, with masks that are added.
        dtype: The type of those.
    """

    def put(mask: Tensor) -> Any:
        def replaced(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Any:
            names = list(signature(module.forward).parameters)
            place = names.index("attention_mask") if "attention_mask" in names else len(args)
            if place < len(args):
                given = _like(mask, args[place], eager=eager, dtype=dtype)
                return (*args[:place], given, *args[place + 1 :]), kwargs
            given = _like(mask, kwargs.get("attention_mask"), eager=eager, dtype=dtype)
            return args, {**kwargs, "attention_mask": given}

        return replaced

    handles = [
        layer.register_forward_pre_hook(put(mask), with_kwargs=True)
        for layer, mask in zip(layers, _beside(layers, masks), strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _beside(layers: nn.ModuleList, masks: Sequence[Tensor]) -> Iterator[Tensor]:
    """Masks on the devices of their layers, each copied to a device once."""
    copied: dict[tuple[int, torch.device], Tensor] = {}
    for layer, mask in zip(layers, masks, strict=True):
        device = next((weight.device for weight in layer.parameters()), mask.device)
        if (id(mask), device) not in copied:
            copied[id(mask), device] = mask.to(device)
        yield copied[id(mask), device]


def _like(allowed: Tensor, given: object, *, eager: bool, dtype: torch.dtype) -> Tensor:
    """A mask in the form of the one that a model gave."""
    if not eager:
        return allowed
    if isinstance(given, Tensor) and given.dtype == torch.bool:  # MPT's: true where hidden
        return ~allowed
    return additive(allowed, dtype)
