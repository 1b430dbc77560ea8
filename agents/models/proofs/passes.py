"""Whether a model computes over our caches as transformers does, and between rows, and in parts.

Architectures differ in how they find positions, make masks and call their layers. No entry of a
configuration says so reliably. So each way of computing is tried on a few tokens of the model
itself and compared with one pass over them.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from unspoken.agents.models.hf import Backbone, Capture
from unspoken.agents.models.hf_cache import ContextCache
from unspoken.agents.models.quiet import first_line
from unspoken.channels.kv.geometry import ModelIdentity

TOKENS = 7
AGAIN = (1, 3, 4)
"""Tokens that are computed once more between the others."""


def refuses_states(backbone: Backbone) -> str | None:
    """Why a context cannot be continued over its state; None where it can."""
    windows = any(layer.window is not None for layer in backbone.geometry.layers)
    # A class may have its code from those that it derives from, in modules of their own.
    modules = [sys.modules.get(one.__module__) for one in type(backbone.base).__mro__]
    if windows and not any(hasattr(one, "create_sliding_window_causal_mask") for one in modules):
        return "its configuration has a window that its code does not apply"
    return _tried(lambda: _continued(backbone), "tokens over its cache")


def refuses_fills(backbone: Backbone) -> str | None:
    """Why tokens between rows that stand already cannot be computed; None where they can."""
    return _tried(lambda: _filled(backbone), "tokens between others")


def refuses_layers(backbone: Backbone) -> str | None:
    """Why layers cannot be run without those before them; None where they can."""
    return _tried(lambda: _by_layers(backbone), "layers run one by one")


def refuses_gradients(backbone: Backbone) -> str | None:
    """Why no gradient goes back through its layers; None where it does.

    Tried where layers are not torch's own: those of a quantised model.
    """
    if not getattr(backbone.model, "is_quantized", False):
        return None
    linears = [one for one in backbone.layers[-1].modules() if isinstance(one, torch.nn.Linear)]
    for layer in linears:
        shape = 2, layer.in_features
        with torch.enable_grad():
            given = torch.ones(shape, dtype=backbone.model.dtype, device=backbone.device)
            given.requires_grad_()
            try:
                layer(given).sum().backward()
            except Exception as error:  # a package's own code may raise anything here
                return f"no gradient goes through its quantised layers: {first_line(error)}"
        if given.grad is None or not bool(given.grad.isfinite().all()):
            return "no gradient goes through its quantised layers"
    return None


def _tried(differs: Callable[[], bool], what: str) -> str | None:
    try:
        with torch.no_grad():
            return f"{what} are computed otherwise" if differs() else None
    except Exception as error:  # an architecture's own code may raise anything here
        return f"{what} cannot be computed: {type(error).__name__}: {first_line(error)}"


def _continued(backbone: Backbone) -> bool:
    ids = _ids(backbone)
    cache = backbone.cache_class(backbone.geometry, TOKENS, ModelIdentity("", "", ""))
    with backbone.computing():
        whole = backbone.logits({"input_ids": ids[None], "use_cache": False})
        parts = [
            backbone.forward(ids[start:stop], cache, keep=stop - start)
            for start, stop in ((0, 3), (3, TOKENS - 1), (TOKENS - 1, TOKENS))
        ]
    cache.snapshot()  # raises where a layer keeps nothing
    assert all(part is not None for part in parts)  # each was asked for
    return _apart(backbone, whole, torch.cat([part for part in parts if part is not None]))


def _filled(backbone: Backbone) -> bool:
    ids = _ids(backbone)
    cache = backbone.cache_class(backbone.geometry, TOKENS)
    with backbone.computing():
        whole = backbone.forward(ids, cache, keep=TOKENS)
        before = _rows(cache)
        places = torch.tensor(AGAIN, device=ids.device)
        again = backbone.fill(ids[places], places, AGAIN[-1], cache)
    assert whole is not None and again is not None
    if _apart(backbone, whole[AGAIN[-1]], again[-1]):
        return True
    return _any_apart(backbone, before, _rows(cache))


def _by_layers(backbone: Backbone) -> bool:
    ids, first = _ids(backbone), 1
    last, start = len(backbone.layers), 2
    wanted: Capture = {first: []}
    cache = backbone.cache_class(backbone.geometry, TOKENS)
    positions = torch.arange(start, TOKENS, device=ids.device)
    with backbone.computing():
        backbone.forward(ids, cache, keep=0, capture=wanted)
        before = _rows(cache)
        hidden = wanted[first][0][start:]
        for rows in cache.rows[first:]:
            rows.keys[:, :, start:] = 0
        backbone.run_layers(hidden, first, last, positions, start, cache)
        embedded = backbone.embed(ids)
    if embedded.shape != (TOKENS, hidden.shape[1]):
        return True
    return _any_apart(backbone, before, _rows(cache))


def _ids(backbone: Backbone) -> Tensor:
    ids = torch.arange(3, 3 + 5 * TOKENS, 5, device=backbone.device)
    return ids % int(backbone.config.vocab_size)


def _rows(cache: ContextCache) -> list[Tensor]:
    """A copy of all keys and values."""
    return [
        tensor[0, :, :TOKENS].clone()
        for rows in cache.rows
        for tensor in (rows.keys, rows.values)
        if tensor.numel()  # some layers keep none
    ]


def _any_apart(backbone: Backbone, expected: list[Tensor], actual: list[Tensor]) -> bool:
    return any(_apart(backbone, a, b) for a, b in zip(expected, actual, strict=True))


def _apart(backbone: Backbone, expected: Tensor, actual: Tensor) -> bool:
    """Whether values differ by more than rounding."""
    expected, actual = expected.float(), actual.float()
    spread = expected.std().clamp(min=1e-6)
    return not bool((expected - actual).abs().max() <= backbone.rounding * spread)
