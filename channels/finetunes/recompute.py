"""A cache across fine-tunes of one base: some layers are recomputed, the others taken over.

After DroidSpeak (arXiv 2411.02820). Between two fine-tunes of one base most layers' keys and values
are much the same, a few are not. The receiver takes the sharer's for most layers, and computes
those of some **ranges** of neighbouring layers itself. What enters a range is the sharer's hidden
state there, which the sharer keeps for that purpose (the E-cache); a range that begins at layer 0
needs none, since the receiver embeds the tokens itself.
"""

from collections.abc import Sequence

import torch

from unspoken.channels.errors import IdentityMismatch, InputError, StateError
from unspoken.channels.kv.geometry import CacheGeometry, ModelIdentity
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import CausalModel, layer_devices

LayerRanges = tuple[tuple[int, int], ...]
"""Layers first … last - 1 of each range, ascending, with at least one layer between two ranges."""


def check_layer_ranges(layer_ranges: Sequence[Sequence[int]], layers: int) -> LayerRanges:
    """Ranges of a model of so many layers, neighbours joined.

    Raises:
        InputError: A range that is empty, out of range, or overlaps the one before.
    """
    checked: list[tuple[int, int]] = []
    for layer_range in layer_ranges:
        if len(layer_range) != 2 or not 0 <= layer_range[0] < layer_range[1] <= layers:
            raise InputError(
                f"the range of layers {list(layer_range)} cannot be recomputed",
                expected=f"[first, last + 1] within 0 and {layers}, the model's layers",
            )
        first, last = layer_range
        if checked and first < checked[-1][1]:
            raise InputError(
                f"the range of layers {list(layer_range)} begins inside the one before it, "
                f"{list(checked[-1])}",
                expected="ranges in ascending order that do not overlap",
            )
        if checked and first == checked[-1][1]:
            first = checked.pop()[0]
        checked.append((first, last))
    return tuple(checked)


def layers_of(layer_ranges: LayerRanges) -> int:
    """How many layers are in ranges."""
    return sum(last - first for first, last in layer_ranges)


def within(layer: int, layer_ranges: LayerRanges) -> bool:
    """Whether a layer is in one of the ranges."""
    return any(first <= layer < last for first, last in layer_ranges)


def named(layer_ranges: LayerRanges) -> str:
    """The ranges as layer numbers, for people."""
    return ", ".join(f"{first}-{last - 1}" for first, last in layer_ranges) or "none"


def entry_layers(layer_ranges: LayerRanges) -> tuple[int, ...]:
    """Layers whose inputs the sharer must keep."""
    return tuple(first for first, _ in layer_ranges if first > 0)


def bytes_per_token(geometry: CacheGeometry, itemsize: int, layer_ranges: LayerRanges) -> int:
    """Bytes that travel per token: layers outside the ranges, hidden states at their beginnings."""
    rows = sum(
        2 * shape.kv_heads * shape.head_dim
        for number, shape in enumerate(geometry.layers)
        if not within(number, layer_ranges)
    )
    return itemsize * (rows + geometry.hidden_size * len(entry_layers(layer_ranges)))


def require_one_base(receiver: ModelIdentity, sharer: ModelIdentity, what: str) -> None:
    """Refuse `what` unless its maker differs from the receiver in its weights at most.

    Raises:
        IdentityMismatch: Another configuration or tokenizer.
    """
    field = receiver.differing(ModelIdentity(receiver.weights, sharer.config, sharer.tokenizer))
    if field is not None:
        raise IdentityMismatch(
            f"{what} was made by a model with another {field}: {getattr(sharer, field)[:16]}",
            field=field,
            expected=f"{field} {getattr(receiver, field)[:16]}, as fine-tunes of one base share",
            fix="use a bridge or a text channel on this edge",
        )


@torch.no_grad()
def recompute_layers(
    receiver: CausalModel,
    state: KVState,
    ids: Sequence[int],
    layer_ranges: LayerRanges,
    before: Sequence[KVState] = (),
) -> KVState:
    """The receiver's state of some tokens: its own in the ranges of layers, the sharer's elsewhere.

    Args:
        receiver: Computes the ranges.
        state: The sharer's state of these tokens, at the receiver's positions, with its hidden
            states at the ranges' first layers.
        ids: The tokens, as many as the state has.
        layer_ranges: See `check_layer_ranges`.
        before: The receiver's states of all that stands before these tokens.

    Raises:
        IdentityMismatch: The state is not of the receiver's base.
        StateError: A hidden state that is missing, or another number of tokens.
        GeometryMismatch: A state of another shape or dtype.
    """
    require_one_base(receiver.identity, state.identity, "the sharer's state")
    state.check(receiver.geometry, receiver.dtype)
    if len(ids) != len(state):
        problem = f"{len(ids)} tokens and the state of {len(state)}"
        raise StateError(problem, expected="one state per token")
    count = len(receiver.geometry.layers)
    layer_ranges = check_layer_ranges(layer_ranges, count)
    _require_entries(state, entry_layers(layer_ranges))
    device = receiver.device
    positions = torch.arange(state.start, state.stop, device=device)
    layers: list[LayerState] = []
    for first, last in layer_ranges:
        layers += state.layers[len(layers) : first]
        if first:
            hidden = state.hidden[first].to(device)
        else:
            hidden = receiver.embed(torch.tensor(tuple(ids), device=device))
        layers += receiver.run_layers(hidden, first, last, positions, before)[1]
    layers += state.layers[len(layers) :]
    whole = layer_ranges == ((0, count),)
    rough = None if whole and all(piece.exact for piece in before) else state.start
    return KVState(
        layers=tuple(layers),
        start=state.start,
        stop=state.stop,
        identity=receiver.identity,
        approximate_from=rough,
    ).to(layer_devices(receiver))


def _require_entries(state: KVState, wanted: Sequence[int]) -> None:
    listed = ", ".join(map(str, wanted))
    missing = [layer for layer in wanted if layer not in state.hidden]
    if missing:
        raise StateError(
            f"the sharer's state has no hidden states at the input of layer {missing[0]}",
            expected=f"hidden states at the inputs of layers {listed}",
            fix="let the sharer capture them",
        )
    if wanted and state.hidden_first > state.start:
        raise StateError(
            f"the sharer's hidden states begin at position {state.hidden_first}",
            expected=f"hidden states from position {state.start} on at the inputs of layers "
            f"{listed}",
            fix="share what the sharer computed itself in this turn, such as its prompt or its "
            "output",
        )
