"""A projection as tensors: features of a message in, the receiver's state of it out."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from unspoken.channels.bridges.features import layer_rows, state_of
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import CausalModel

SINK = 4
"""First positions of a context that a bridge leaves to the receiver."""

BLOCK = 512
"""Tokens that are projected at once: the float32 rows of a long message are larger than its state.
"""


def feature_rows(
    config: ProjectorConfig,
    sharer_rows: Tensor,
    ids: Sequence[int],
    at: int,
    receiver: CausalModel,
    hidden: Tensor | None,
) -> Tensor:
    """Features of the message's tokens, (tokens, columns): sharer rows, embeddings, native output.

    Args:
        config: Which features there are.
        sharer_rows: Bare rows of the sharer's source layers, (tokens, columns).
        ids: The receiver's context up to the message's last token.
        at: Position of the message's first token.
        receiver: Gives its embeddings.
        hidden: Output of the native layers, (tokens, hidden_size), where there are any.
    """
    parts = [sharer_rows.to(receiver.device)]
    if config.embeddings:
        first = max(at - config.embeddings + 1, 0)
        embedded = receiver.embed(torch.tensor(ids[first:], device=receiver.device)).float()
        for back in range(config.embeddings):
            start = at - first - back
            rows = embedded[max(start, 0) : len(embedded) - back]
            parts.append(torch.nn.functional.pad(rows, (0, 0, max(-start, 0), 0)))
    if hidden is not None:
        parts.append(hidden.float())
    return torch.cat(parts, dim=1)


def native_part(
    receiver: CausalModel, layers: int, ids: Sequence[int], at: int
) -> tuple[Tensor | None, tuple[LayerState, ...]]:
    """Output of the receiver's first layers over the message, and their keys and values."""
    if not layers:
        return None, ()
    tensor = torch.tensor(ids, device=receiver.device)
    positions = torch.arange(len(ids), device=receiver.device)
    hidden, states = receiver.run_layers(receiver.embed(tensor), 0, layers, positions)
    native = tuple(
        LayerState(state.keys[:, at:].clone(), state.values[:, at:].clone(), at) for state in states
    )
    return hidden[at:], native


def projected_state(
    projector: Projector,
    features: Tensor,
    native: Sequence[LayerState],
    at: int,
    receiver: CausalModel,
) -> KVState:
    """The receiver's state of the message at positions `at` and on, as the projector makes it."""
    if torch.is_grad_enabled() and projector.encode.requires_grad:  # a graph needs all rows
        layers = projector.config.target_layers(receiver.geometry)
        return state_of(projector(features.float()), layers, at, receiver, native)
    blocks = (features[block].float() for block in blocks_of(len(features)))
    return state_of_blocks(projector, blocks, len(features), native, at, receiver)


def blocks_of(tokens: int) -> Iterator[slice]:
    """The blocks that so many tokens are projected in; one, where there are none."""
    for start in range(0, max(tokens, 1), BLOCK):
        yield slice(start, min(start + BLOCK, tokens))


@torch.no_grad()
def state_of_blocks(
    projector: Projector,
    blocks: Iterable[Tensor],
    tokens: int,
    native: Sequence[LayerState],
    at: int,
    receiver: CausalModel,
) -> KVState:
    """As `projected_state`, of features that come block by block.

    Each block is written into its place in the receiver's type, so that beside the state no more
    than one block is held.

    Args:
        projector: The projector.
        blocks: Features, (tokens of the block, columns) each, in order.
        tokens: Tokens of all blocks together.
        native: The receiver's first layers over the same tokens.
        at: Position of the first token.
        receiver: Whose state it is.
    """
    geometry, device = receiver.geometry, receiver.device
    layers = projector.config.target_layers(geometry)
    shapes = [geometry.layers[number] for number in layers]
    places = [
        tuple(torch.empty(size, dtype=receiver.dtype, device=device) for _ in range(2))
        for size in ((shape.kv_heads, tokens, shape.head_dim) for shape in shapes)
    ]
    done = 0
    for features in blocks:
        rows, stop = projector(features), done + len(features)
        made = layer_rows(rows, layers, at + done, receiver)
        for place, (keys, values) in zip(places, made, strict=True):
            place[0][:, done:stop] = keys
            place[1][:, done:stop] = values
        done = stop
    states = (LayerState(place[0], place[1], at) for place in places)
    return KVState(
        layers=(*native, *states),
        start=at,
        stop=at + tokens,
        identity=receiver.identity,
        approximate_from=at,
    )
