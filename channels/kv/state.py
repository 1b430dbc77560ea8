"""The state of a run of tokens: keys and values per layer, with their positions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor

from unspoken.channels.errors import GeometryMismatch, StateError
from unspoken.channels.kv.geometry import CacheGeometry, ModelIdentity
from unspoken.channels.kv.rope import Rotary, shift

__all__ = ["KVState", "LayerState"]

_NOTHING: Mapping[int, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class LayerState:
    """One layer's keys and values.

    Attributes:
        keys: Rotated keys, shape (kv_heads, rows, head_dim).
        values: Values, same shape.
        first: Position of the first row; later than the state's start where a sliding layer was
            trimmed.
    """

    keys: Tensor
    values: Tensor
    first: int

    @property
    def rows(self) -> int:
        """Number of tokens this layer holds."""
        return self.keys.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.nbytes + self.values.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class KVState:
    """Keys and values of the tokens at positions start … stop - 1, never changed once made.

    All transforms return a new state; slices share memory with the state they come from. To fork is
    to keep a reference.

    Attributes:
        layers: One entry per decoder layer.
        start: Position of the first token.
        stop: Position after the last token.
        identity: The model that computed it.
        approximate_from: First position whose rows are not just what the model computes over all
            tokens before it, as after a splice; None where there is no such position.
        hidden: Hidden states at the inputs of some layers (the E-cache), each (rows, hidden_size);
            they belong to the last rows of the state, to all of them where it was computed in one
            piece.
    """

    layers: tuple[LayerState, ...]
    start: int
    stop: int
    identity: ModelIdentity
    approximate_from: int | None = None
    hidden: Mapping[int, Tensor] = field(default_factory=lambda: _NOTHING)

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise StateError(f"a state cannot cover positions {self.start} to {self.stop}")
        for number, layer in enumerate(self.layers):
            if layer.first < self.start or layer.first + layer.rows != self.stop:
                raise StateError(
                    f"layer {number} holds positions {layer.first} to {layer.first + layer.rows}",
                    expected=f"rows that end at position {self.stop} and start at {self.start} or "
                    "later",
                )
            if layer.keys.shape != layer.values.shape:
                raise GeometryMismatch(
                    f"layer {number} has keys {tuple(layer.keys.shape)} and values "
                    f"{tuple(layer.values.shape)}",
                    expected="equal shapes (kv_heads, rows, head_dim)",
                )
        kept = {tensor.shape[0] for tensor in self.hidden.values()}
        if len(kept) > 1 or any(rows > len(self) for rows in kept):
            raise GeometryMismatch(
                f"hidden states of {', '.join(map(str, sorted(kept)))} tokens in a state of "
                f"{len(self)}",
                expected="hidden states of the same tokens at every layer, all of them in the "
                "state",
            )

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def exact(self) -> bool:
        """Whether every row is what the model computes over the tokens before it."""
        return self.approximate_from is None

    @property
    def hidden_first(self) -> int:
        """First position that has hidden states; `stop` where there are none."""
        return self.stop - max((tensor.shape[0] for tensor in self.hidden.values()), default=0)

    @property
    def cache_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys, values and hidden states."""
        return self.cache_bytes + sum(tensor.nbytes for tensor in self.hidden.values())

    @property
    def dtype(self) -> torch.dtype:
        """Element type of keys and values."""
        return self.layers[0].keys.dtype

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.layers[0].keys.device

    def slice(self, start: int, stop: int) -> "KVState":
        """The state of positions start … stop - 1, sharing memory.

        A layer that was trimmed to begin later than `start` begins later in the slice too.

        Raises:
            StateError: The state does not cover these positions.
        """
        if not self.start <= start <= stop <= self.stop:
            raise StateError(
                f"positions {start} to {stop} were asked of a state",
                expected=f"positions within {self.start} to {self.stop}, which it covers",
            )
        layers = []
        for layer in self.layers:
            first = min(max(layer.first, start), stop)
            rows = slice(
                min(first - layer.first, layer.rows) if first >= layer.first else 0,
                max(stop - layer.first, 0),
            )
            layers.append(LayerState(layer.keys[:, rows], layer.values[:, rows], first))
        at = self.hidden_first
        rows = slice(max(start - at, 0), max(stop - at, 0))
        hidden = {layer: tensor[rows] for layer, tensor in self.hidden.items()}
        rough = self.approximate_from
        return replace(
            self,
            layers=tuple(layers),
            start=start,
            stop=stop,
            approximate_from=max(rough, start) if rough is not None and rough < stop else None,
            hidden=MappingProxyType(hidden),
        )

    def shift(
        self, delta: int, geometry: CacheGeometry, rotary: Callable[[str], Rotary]
    ) -> "KVState":
        """The same tokens `delta` positions further on: keys rotated in float32, values shared.

        Args:
            delta: Number of positions, negative to move towards the start.
            geometry: Geometry of the model that made the state.
            rotary: The model's rotary embedding for a name in the geometry.

        Raises:
            StateError: The tokens would stand before position 0.
            ModelSupportError: A rotary embedding whose frequencies change with the length.
        """
        if delta == 0:
            return self
        layers = tuple(
            LayerState(
                shift(layer.keys, delta, rotary(shape.rope)), layer.values, layer.first + delta
            )
            for layer, shape in zip(self.layers, geometry.layers, strict=True)
        )
        rough = self.approximate_from
        return replace(
            self,
            layers=layers,
            start=self.start + delta,
            stop=self.stop + delta,
            approximate_from=None if rough is None else rough + delta,
        )

    def trim(self, geometry: CacheGeometry) -> "KVState":
        """Drop what no token from `stop` on can see: all but the last window - 1 rows of sliding
        layers.

        The dropped rows are copied away from, so that their memory is given back once the original
        goes.
        """
        layers = []
        for layer, shape in zip(self.layers, geometry.layers, strict=True):
            keep = layer.rows if shape.window is None else min(layer.rows, shape.window - 1)
            if keep == layer.rows:
                layers.append(layer)
                continue
            rows = slice(layer.rows - keep, None)
            layers.append(
                LayerState(
                    layer.keys[:, rows].clone(), layer.values[:, rows].clone(), self.stop - keep
                )
            )
        return replace(self, layers=tuple(layers))

    def to(self, device: torch.device) -> "KVState":
        """The same state on `device`: itself where it is there already, otherwise an explicit copy."""
        if self.device == device:
            return self
        layers = tuple(
            LayerState(layer.keys.to(device), layer.values.to(device), layer.first)
            for layer in self.layers
        )
        hidden = {layer: tensor.to(device) for layer, tensor in self.hidden.items()}
        return replace(self, layers=layers, hidden=MappingProxyType(hidden))

    @staticmethod
    def concat(states: Sequence["KVState"]) -> "KVState":
        """One state of several that follow on each other; a single one is returned as it is.

        Raises:
            StateError: They do not follow on each other, or a later one lacks trimmed rows.
            IdentityMismatch: They were made by different models.
        """
        if not states:
            raise StateError("no states to concatenate", expected="at least one")
        head, *rest = states
        if not rest:
            return head
        at = head.stop
        for state in rest:
            head.identity.require(state.identity, "a state to be concatenated")
            if state.start != at or any(layer.first != state.start for layer in state.layers):
                raise StateError(
                    f"a state of positions {state.start} to {state.stop} cannot follow one that "
                    f"ends at {at}",
                    expected=f"an untrimmed state that starts at position {at}",
                )
            at = state.stop
        layers = tuple(
            LayerState(
                torch.cat([layer.keys for layer in parts], dim=1),
                torch.cat([layer.values for layer in parts], dim=1),
                parts[0].first,
            )
            for parts in zip(*(state.layers for state in states), strict=True)
        )
        hidden = _joined(states)
        starts = [state.approximate_from for state in states if state.approximate_from is not None]
        return replace(
            head,
            layers=layers,
            stop=at,
            approximate_from=min(starts, default=None),
            hidden=MappingProxyType(hidden),
        )

    def check(self, geometry: CacheGeometry, dtype: torch.dtype) -> None:
        """Refuse a state that does not have the model's shape.

        Raises:
            GeometryMismatch: Another number of layers, other heads, or another dtype.
        """
        if len(self.layers) != len(geometry.layers):
            raise GeometryMismatch(
                f"a state of {len(self.layers)} layers", expected=f"{len(geometry.layers)} layers"
            )
        for number, (layer, shape) in enumerate(zip(self.layers, geometry.layers, strict=True)):
            found = (layer.keys.shape[0], layer.keys.shape[2])
            if found != (shape.kv_heads, shape.head_dim):
                raise GeometryMismatch(
                    f"layer {number} of a state has {found[0]} heads of {found[1]}",
                    expected=f"{shape.kv_heads} heads of {shape.head_dim}",
                )
        if self.dtype != dtype:
            raise GeometryMismatch(
                f"a state in {self.dtype}",
                expected=f"{dtype}, as the receiving model computes",
                fix="load both agents' models with one dtype",
            )


def _joined(states: Sequence[KVState]) -> dict[int, Tensor]:
    """Hidden states of as many of the last rows as have them without a gap, at the layers that all
    of those have.
    """
    tail: list[KVState] = []
    for state in reversed(states):
        if not state.hidden or (tail and not set(state.hidden) & set(tail[0].hidden)):
            break
        tail.insert(0, state)
        if state.hidden_first > state.start:
            break
    shared = set.intersection(*(set(state.hidden) for state in tail)) if tail else set()
    return {layer: torch.cat([state.hidden[layer] for state in tail]) for layer in shared}
