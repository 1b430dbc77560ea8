"""How large a bridge is: columns of its features, width of its code, bytes, memory of a fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from unspoken.channels.bridges.features import width, widths
from unspoken.channels.bridges.fit.ridge import gram_bytes
from unspoken.channels.bridges.fit.settings import FitSettings
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.bridges.quantize import quantized_bytes
from unspoken.channels.kv.geometry import CacheGeometry
from unspoken.channels.model import TextModel
from unspoken.channels.model_size import Size

TOKENS = 32_000
"""Tokens that a closed form is solved from, where six times the columns are fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureShape:
    """How many features there are, before it is known of which layers.

    Attributes:
        layers: Source layers.
        embeddings: The receiver's embeddings.
        native: 1 with native layers, else 0.
        sketch: As `ProjectorConfig` has it.
    """

    layers: int
    embeddings: int
    native: int
    sketch: int = 0

    def columns(self, sizes: Sequence[int], receiver: CacheGeometry) -> int:
        """Columns that the map reads.

        Args:
            sizes: Columns of the layers read.
            receiver: Geometry of the receiver.
        """
        kept = [min(size, self.sketch or size) for size in sizes]
        own = min(receiver.hidden_size, 2 * self.sketch or receiver.hidden_size)
        return sum(kept) + (self.embeddings + self.native) * own


def within_columns(
    settings: FitSettings, sizes: Sequence[int], receiver: CacheGeometry
) -> FeatureShape:
    """How many source layers and embeddings are read, within the columns also for wide models.

    Args:
        settings: The fit's.
        sizes: Columns of every layer of the sharer.
        receiver: Geometry of the receiver.
    """
    native = int(settings.native_layers > 0)
    sketch = settings.sketch or 0
    if settings.source_layers is not None:
        layers = min(settings.source_layers, len(sizes))
        return FeatureShape(
            layers=layers, embeddings=settings.embeddings, native=native, sketch=sketch
        )
    if sketch:
        return _sketched(settings, sizes, receiver, sketch)
    size, width_of_one = max(sizes), receiver.hidden_size
    embeddings = settings.embeddings
    while embeddings > 1 and settings.columns - (native + embeddings) * width_of_one < 2 * size:
        embeddings -= 1
    room = (settings.columns - (native + embeddings) * width_of_one) // size
    wanted = min(_layers_to_read(size), len(sizes))
    layers = min(wanted, max(room, 1))
    theirs, total = layers * size, layers * size + (native + embeddings) * width_of_one
    few = layers < wanted or theirs < total / 2
    if settings.sketch is None and few and total > MOST_LAYERS * SKETCH:
        return _sketched(settings, sizes, receiver, SKETCH)
    return FeatureShape(layers=layers, embeddings=embeddings, native=native)


def _sketched(
    settings: FitSettings, sizes: Sequence[int], receiver: CacheGeometry, sketch: int
) -> FeatureShape:
    """With a sketch, as many layers as the columns allow, 12 at most."""
    native = int(settings.native_layers > 0)
    own = FeatureShape(layers=0, embeddings=settings.embeddings, native=native, sketch=sketch)
    room = (settings.columns - own.columns((), receiver)) // min(sketch, max(sizes))
    return replace(own, layers=max(min(MOST_LAYERS, room, len(sizes)), 1))


MOST_LAYERS, SKETCH = 12, 256
"""Source layers that are read at most, and the columns of each that a wide pair reads."""


def _layers_to_read(columns: int) -> int:
    """Source layers worth their products: where measured, a wider code kept more than they do."""
    return max(4, min(MOST_LAYERS, 1536 // columns))


BYTES = 15_950_000
"""What any bridge's weights may take: 16 MB with its manifest and its card."""

SHARE_OF_BYTES, SHARE_OF_PRODUCTS = 0.03, 0.1
"""Of the receiver's, what a larger bridge may take."""


LEAST = 512
"""Width of the code that a large pair gets even so."""


STEP = 32


def most_bytes(receiver: Size | None) -> int:
    """Bytes that the int8 weights of a bridge may take: 16 MB, or more for a large receiver.

    A weight of a bridge is a product a token, and a byte. So both shares are bounds of its bytes.
    The receiver's own bytes are counted at two a number, whatever type it is loaded in.
    """
    if receiver is None:
        return BYTES
    shares = SHARE_OF_BYTES * 2 * receiver.weights, SHARE_OF_PRODUCTS * receiver.products
    return max(BYTES, int(min(shares)))


def projector_bytes(config: ProjectorConfig, sharer: CacheGeometry, receiver: CacheGeometry) -> int:
    """Bytes of a projector's weights as int8."""
    with torch.device("meta"):  # only shapes are asked
        weights = Projector(config, sharer, receiver).state_dict()
    return sum(quantized_bytes(tensor.shape) for tensor in weights.values())


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
    inputs = sum(config.inputs(sharer, receiver))
    full = min(inputs, width(receiver, config.target_layers(receiver)))
    # But for a few roundings, every column of the code adds the same.
    narrow, wide = (
        projector_bytes(replace(config, rank=rank), sharer, receiver) for rank in (2 * STEP, LEAST)
    )
    per_column = (wide - narrow) / (LEAST - 2 * STEP)
    fits = int((most - wide) / per_column) + LEAST
    return min(max(fits // STEP * STEP, LEAST), full)


def peak_gigabytes(settings: FitSettings, sharer: TextModel, receiver: TextModel) -> float:
    """Memory that the closed form takes at most, in GB."""
    sizes = widths(sharer.geometry, range(len(sharer.geometry.layers)))
    shape = within_columns(settings, sizes, receiver.geometry)
    inputs = shape.columns(sorted(sizes)[-shape.layers :], receiver.geometry)
    targets = range(settings.native_layers, len(receiver.geometry.layers))
    return gram_bytes(inputs, width(receiver.geometry, targets)) / 1e9
