"""States made by hand, for the tests of where they are kept."""

import torch

from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.state import KVState

IDENTITY = ModelIdentity("w", "c", "t")
ROW = 2 * 2 * 4 * 4
"""Bytes of a token of `state_of`, float32."""


def state_of(ids: tuple[int, ...], *, rough: int | None = None, layers: int = 1) -> KVState:
    """A state whose rows tell its ids; two KV heads of 4 a layer."""
    rows = torch.tensor(ids, dtype=torch.float32)[None, :, None] + torch.zeros(2, len(ids), 4)
    parts = tuple(LayerState(rows + n, rows - n - 0.5, 0) for n in range(layers))
    return KVState(layers=parts, start=0, stop=len(ids), identity=IDENTITY, approximate_from=rough)


def same_rows(left: object, right: object) -> bool:
    """Whether two states are equal, bit by bit."""
    assert isinstance(left, KVState) and isinstance(right, KVState)
    assert (left.start, left.stop, left.approximate_from) == (
        right.start,
        right.stop,
        right.approximate_from,
    )
    pairs = zip(left.layers, right.layers, strict=True)
    return all(
        one.first == other.first
        and torch.equal(one.keys, other.keys)
        and torch.equal(one.values, other.values)
        for one, other in pairs
    )
