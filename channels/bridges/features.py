"""Keys and values as plain rows, one per token, free of position: what a bridge maps."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from unspoken.channels.kv.geometry import CacheGeometry
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.rope import Rotary, turn_back, turn_to
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import CausalModel, rotaries


def widths(geometry: CacheGeometry, layers: Sequence[int]) -> tuple[int, ...]:
    """Columns that each of `layers` takes in a row: its keys, then its values."""
    return tuple(2 * geometry.layers[n].kv_heads * geometry.layers[n].head_dim for n in layers)


def width(geometry: CacheGeometry, layers: Sequence[int]) -> int:
    """Columns of a row of `layers`."""
    return sum(widths(geometry, layers))


def bare_rows(
    state: KVState,
    layers: Sequence[int],
    positions: Tensor,
    geometry: CacheGeometry,
    rotary: Mapping[str, Rotary],
) -> Tensor:
    """Un-rotated keys and values of some tokens; no others are copied to their device.

    Args:
        state: A state that holds all rows of these layers at `positions`.
        layers: Which layers, in the order of the columns.
        positions: Positions of the tokens, (tokens,), repeats allowed, on the device where the rows
            are wanted.
        geometry: Geometry of the state's model.
        rotary: Its rotary embeddings by name.

    Returns:
        Float32 rows, (tokens, columns); per layer the keys of all heads, then the values of all
        heads.
    """
    turns = {name: turn_back(positions, rotary[name]) for name in _ropes(geometry, layers)}
    parts, there, here = [], positions.to(state.device), positions.device
    for number in layers:
        layer = state.layers[number]
        rows = there - layer.first
        keys, values = (
            tensor.index_select(1, rows).to(here).float() for tensor in (layer.keys, layer.values)
        )
        rope = geometry.layers[number].rope
        if rope is not None:
            keys = turns[rope](keys)
        parts += [keys.transpose(0, 1).flatten(1), values.transpose(0, 1).flatten(1)]
    if not parts:  # a bridge of embeddings alone reads no layer
        return torch.zeros(len(positions), 0, device=here)
    return torch.cat(parts, dim=1)


def state_of(
    rows: Tensor,
    layers: Sequence[int],
    at: int,
    receiver: CausalModel,
    native: Sequence[LayerState] = (),
) -> KVState:
    """The inverse of `bare_rows`: the receiver's state of rows from position `at` on.

    Args:
        rows: Bare rows, (tokens, columns), on the receiver's device.
        layers: Which layers, in the order of the columns; those after `native`.
        at: Position of the first token.
        receiver: Whose state it is.
        native: The receiver's first layers over the same tokens.
    """
    made = (
        LayerState(keys.to(receiver.dtype), values.to(receiver.dtype), at)
        for keys, values in layer_rows(rows, layers, at, receiver)
    )
    return KVState(
        layers=(*native, *made),
        start=at,
        stop=at + len(rows),
        identity=receiver.identity,
        approximate_from=at,
    )


def layer_rows(
    rows: Tensor, layers: Sequence[int], at: int, receiver: CausalModel
) -> Iterator[tuple[Tensor, Tensor]]:
    """Per layer the keys, rotated to their positions, and the values, (heads, tokens, head_dim).

    Args:
        rows: Bare rows, (tokens, columns), on the receiver's device.
        layers: Which layers, in the order of the columns.
        at: Position of the first token.
        receiver: Whose rows they are.
    """
    geometry, rotary = receiver.geometry, rotaries(receiver)
    positions = torch.arange(at, at + len(rows), device=rows.device)
    turns = {name: turn_to(positions, rotary[name]) for name in _ropes(geometry, layers)}
    column = 0
    for number in layers:
        shape = geometry.layers[number]
        size = shape.kv_heads * shape.head_dim
        keys, values = (
            rows[:, start : start + size]
            .reshape(len(rows), shape.kv_heads, shape.head_dim)
            .transpose(0, 1)
            for start in (column, column + size)
        )
        if shape.rope is not None:
            keys = turns[shape.rope](keys)
        yield keys, values
        column += 2 * size


def _ropes(geometry: CacheGeometry, layers: Sequence[int]) -> set[str]:
    """The rotary embeddings that some layers use."""
    ropes = {geometry.layers[number].rope for number in layers}
    return {name for name in ropes if name is not None}
