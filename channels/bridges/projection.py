"""A projection as tensors: features of a message in, the receiver's state of it out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unspoken.channels.bridges.features import state_of
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import CausalModel

SINK = 4
"""First positions of a context that a bridge leaves to the receiver."""


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
    layers = projector.config.target_layers(receiver.geometry)
    return state_of(projector(features.float()), layers, at, receiver, native)
