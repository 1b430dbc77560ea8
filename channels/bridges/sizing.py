"""How large a projector is on disk, and how wide its code may be for it to stay small."""

from dataclasses import replace

from unspoken.channels.bridges.features import width
from unspoken.channels.bridges.packing import packed_bytes
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.geometry import CacheGeometry

__all__ = ["BYTES", "LEAST", "projector_bytes", "widest_rank"]

BYTES = 15_950_000
"""What a bridge's weights may take: 16 MB with its manifest and its card."""

LEAST = 512
"""Width of the code that a large pair gets even so."""

STEP = 32


def projector_bytes(config: ProjectorConfig, sharer: CacheGeometry, receiver: CacheGeometry) -> int:
    """Bytes of a projector's weights as int8."""
    weights = Projector(config, sharer, receiver).state_dict()
    return sum(packed_bytes(tensor.shape) for tensor in weights.values())


def widest_rank(
    config: ProjectorConfig, sharer: CacheGeometry, receiver: CacheGeometry, most: int = BYTES
) -> int:
    """The widest code, in steps of 32, with which the weights stay within `most` bytes.

    At least `LEAST`, and never more than there are features or targets.

    Args:
        config: The projector's; its rank is not read.
        sharer: Geometry of the sharer.
        receiver: Geometry of the receiver.
        most: Bytes as int8.
    """
    inputs = sum(config.features(sharer, receiver))
    full = min(inputs, width(receiver, config.target_layers(receiver)))
    # But for a few roundings, every column of the code adds the same.
    narrow, wide = (
        projector_bytes(replace(config, rank=rank), sharer, receiver) for rank in (2 * STEP, LEAST)
    )
    per_column = (wide - narrow) / (LEAST - 2 * STEP)
    fits = int((most - wide) / per_column) + LEAST
    return min(max(fits // STEP * STEP, LEAST), full)
