"""Which tokens of a spliced message are worth recomputing."""

import math
from collections.abc import Sequence

import torch

from unspoken.channels.kv.state import KVState
from unspoken.channels.model import CausalModel


def early_layers(receiver: CausalModel) -> int:
    """How many layers are run to find the tokens that deviate."""
    return min(2, len(receiver.geometry.layers))


@torch.no_grad()
def deviating_positions(
    receiver: CausalModel, context: Sequence[int], spliced: Sequence[KVState], share: float
) -> tuple[int, ...]:
    """The positions whose values deviate most from the receiver's own, ascending.

    The receiver runs its first layers over the context. The values of the last of these layers are
    compared with the spliced ones: the Euclidean distance over all heads tells how much a token
    depends on what stood before it. Tokens that deviate on an early layer deviate on the later
    ones (CacheBlend, arXiv 2405.16444).

    Args:
        receiver: The receiving model.
        context: Ids of its context, at least up to the end of what was spliced.
        spliced: States at the receiver's positions, ascending.
        share: How many of their tokens to give, 0 to 1; rounded up.
    """
    stop, layers = spliced[-1].stop, early_layers(receiver)
    ids = torch.tensor(context[:stop], device=receiver.device)
    positions = torch.arange(stop, device=receiver.device)
    truth = receiver.run_layers(receiver.embed(ids), 0, layers, positions)[1][-1]
    latent = receiver.geometry.layers[layers - 1].latent
    distances, places = [], []
    for piece in spliced:
        layer = piece.layers[layers - 1]
        # Values are expanded from latent rows, which stand in place of keys.
        own, theirs = (truth.keys, layer.keys) if latent else (truth.values, layer.values)
        own = own[:, layer.first - truth.first : piece.stop - truth.first]
        distances.append((theirs.float() - own.float()).square().sum(dim=(0, 2)))
        places.append(positions[layer.first : piece.stop])
    distance = torch.cat(distances)
    count = min(math.ceil(share * sum(map(len, spliced))), len(distance))
    chosen = distance.topk(count).indices.to(receiver.device)
    return tuple(sorted(torch.cat(places)[chosen].tolist()))
