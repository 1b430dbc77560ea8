"""The state of a run of tokens: keys and values per layer, with their positions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor

from unspoken.channels.errors import GeometryMismatch, StateError
from unspoken.channels.kv.geometry import CacheGeometry, ModelIdentity
from unspoken.channels.kv.layer_state import LayerState, rows_of
from unspoken.channels.kv.rope import Rotary
from unspoken.channels.kv.snapshot import Snapshot, last_before
from unspoken.channels.kv.transfer import move

_NOTHING: Mapping[int, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, weakref_slot=True)
class KVState:
    """Keys and values of the tokens at positions start … stop - 1, never changed once made.

    All transforms return a new state; slices share memory with the state they come from. To fork is
    to keep a reference.

    Attributes:
        layers: One entry per decoder layer.
        start: Position of the first token.
        stop: Position after the last token.
        identity: The model that computed it.
        approximate_from: First position whose rows differ from what the model computes over all
            tokens before it, as after a splice; None for no such position.
        hops: Inexact hand-overs in a row that its approximate rows came through; 0 without any.
        hidden: Hidden states at the inputs of some layers (the E-cache), each (rows, hidden_size).
            They belong to the last rows of the state, and to all rows of one prefill.
        snapshots: What recurrent layers have at some positions, ascending; empty for a model that
            has none. Such a model goes on from one of them alone.
    """

    layers: tuple[LayerState, ...]
    start: int
    stop: int
    identity: ModelIdentity
    approximate_from: int | None = None
    hops: int = 0
    hidden: Mapping[int, Tensor] = field(default_factory=lambda: _NOTHING)
    snapshots: tuple[Snapshot, ...] = ()

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
            for keys, values in layer.chunks:
                if keys.shape[:2] != values.shape[:2]:
                    raise GeometryMismatch(
                        f"layer {number} has keys {tuple(keys.shape)} and values "
                        f"{tuple(values.shape)}",
                        expected="as many heads and rows of both",
                    )
        counts = {tensor.shape[0] for tensor in self.hidden.values()}
        if len(counts) > 1 or any(rows > len(self) for rows in counts):
            listed = ", ".join(map(str, sorted(counts)))
            raise GeometryMismatch(
                f"hidden states of {listed} tokens in a state of {len(self)}",
                expected="hidden states of the same tokens at every layer, all of them in the "
                "state",
            )

    def __repr__(self) -> str:
        sort = "exact" if self.exact else f"exact to {self.approximate_from}"
        return (
            f"<KVState of positions {self.start} to {self.stop}, {sort}, "
            f"{len(self.layers)} layers, of {self.identity.weights[:12]}>"
        )

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def exact(self) -> bool:
        """Whether every row is what the model computes over the tokens before it."""
        return self.approximate_from is None

    @property
    def whole(self) -> bool:
        """Whether every layer holds every row, as it does unless the state was trimmed."""
        return all(layer.first == self.start for layer in self.layers)

    @property
    def hidden_first(self) -> int:
        """First position that has hidden states; `stop` where there are none."""
        return self.stop - max((tensor.shape[0] for tensor in self.hidden.values()), default=0)

    @property
    def cache_bytes(self) -> int:
        """Bytes of all rows and snapshots."""
        rows = sum(layer.nbytes for layer in self.layers)
        return rows + sum(snapshot.nbytes for snapshot in self.snapshots)

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, snapshots and hidden states."""
        return self.cache_bytes + sum(tensor.nbytes for tensor in self.hidden.values())

    @property
    def dtype(self) -> torch.dtype:
        """Element type of keys and values."""
        return self.layers[0].dtype

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.layers[0].device

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
        rows = rows_of(self.hidden_first, start, stop)
        hidden = {layer: tensor[rows] for layer, tensor in self.hidden.items()}
        rough = self.approximate_from
        return replace(
            self,
            layers=tuple(layer.slice(start, stop) for layer in self.layers),
            start=start,
            stop=stop,
            approximate_from=max(rough, start) if rough is not None and rough < stop else None,
            hops=self.hops if rough is not None and rough < stop else 0,
            hidden=MappingProxyType(hidden),
            snapshots=tuple(one for one in self.snapshots if start < one.at <= stop),
        )

    @classmethod
    def joined(cls, states: Sequence["KVState"]) -> "KVState":
        """States that follow each other, as one that shares their memory; hidden states go.

        Raises:
            StateError: A gap between two of them.
        """
        first, last = states[0], states[-1]
        if any(after.start != before.stop for before, after in pairwise(states)):
            raise StateError(
                "states with a gap between them", expected="states that follow each other"
            )
        layers = zip(*(state.layers for state in states), strict=True)
        rough = [s.approximate_from for s in states if s.approximate_from is not None]
        return replace(
            first,
            layers=tuple(map(LayerState.joined, layers)),
            stop=last.stop,
            approximate_from=min(rough, default=None),
            hops=max(state.hops for state in states),
            hidden=_NOTHING,
            snapshots=tuple(one for state in states for one in state.snapshots),
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
            StateError: A model with recurrent layers.
            ModelSupportError: A rotary embedding whose frequencies change with the length.
        """
        if delta == 0:
            return self
        if geometry.recurrent:
            raise StateError(
                "the state of recurrent layers cannot be moved",
                expected="the same tokens before the message at both ends",
                fix="let the message come first in the receiver's context, or use a text channel",
            )
        layers = tuple(
            # Keys that hold no position are the same everywhere.
            layer.moved(
                delta, None if shape.rope is None else rotary(shape.rope), latent=shape.latent
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
        """The state without the rows that no token from `stop` on sees.

        A sliding layer keeps its last window - 1 rows, in memory of its own, so that the memory of
        the others is free once the original goes. Of snapshots the last one stays. Such a state
        can be continued at `stop`. What needs other rows must have the whole state: a splice, a
        repair, another model, a continuation at an earlier position.

        Args:
            geometry: Geometry of the model that made the state.
        """
        pairs = zip(self.layers, geometry.layers, strict=True)
        return replace(
            self,
            layers=tuple(layer.trim(shape.window) for layer, shape in pairs),
            snapshots=self.snapshots[-1:],
        )

    def continues(self, geometry: CacheGeometry) -> bool:
        """Whether a token at `stop` finds every row that it sees.

        It always does in a whole state. It does in a trimmed one too, but not in the beginning of a
        trimmed one. Of a model with recurrent layers a snapshot must stand there.

        Args:
            geometry: Geometry of the model that made the state.
        """
        if geometry.recurrent and self.stop and all(s.at != self.stop for s in self.snapshots):
            return False
        for layer, shape in zip(self.layers, geometry.layers, strict=True):
            oldest = 0 if shape.window is None else self.stop - shape.window + 1
            if layer.first > max(oldest, self.start):
                return False
        return True

    def usable(self, geometry: CacheGeometry, stop: int) -> int:
        """After how many of the first `stop` positions a model can go on; told without slicing.

        Of a model with recurrent layers it is where the last snapshot before that stands, else all
        or none of them. The state begins at position 0.

        Args:
            geometry: Geometry of the model that made the state.
            stop: How many positions are wanted; at most those of the state.
        """
        if geometry.recurrent:
            snapshot = last_before(self.snapshots, stop)
            stop = 0 if snapshot is None else snapshot.at
        for layer, shape in zip(self.layers, geometry.layers, strict=True):
            oldest = 0 if shape.window is None else max(stop - shape.window + 1, 0)
            if layer.first > oldest:
                return 0
        return stop

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Where each layer lives."""
        return tuple(layer.device for layer in self.layers)

    def to(self, devices: torch.device | Sequence[torch.device]) -> "KVState":
        """The same state elsewhere: itself where it is there already, otherwise a copy.

        However many layers it has, it crosses in one copy (see `unspoken.channels.kv.transfer`).

        Args:
            devices: One for all layers, or one a layer, as a model over several devices has them.
                Hidden states go to the first of them.
        """
        if isinstance(devices, torch.device):
            devices = (devices,) * len(self.layers)
        if self.devices == tuple(devices):
            return self
        tensors = [tensor for layer in self.layers for chunk in layer.chunks for tensor in chunk]
        targets = [
            there
            for layer, there in zip(self.layers, devices, strict=True)
            for chunk in layer.chunks
            for _ in chunk
        ]
        aside = [devices[0]] * len(self.hidden)
        beside = [
            devices[n] for s in self.snapshots for n, parts in s.layers.items() for _ in parts
        ]
        folded = [tensor for snapshot in self.snapshots for tensor in snapshot.tensors()]
        everything = (*tensors, *self.hidden.values(), *folded)
        moved = iter(move(everything, (*targets, *aside, *beside)))
        return replace(
            self,
            layers=tuple(
                layer.with_chunks([(next(moved), next(moved)) for _ in layer.chunks])
                for layer in self.layers
            ),
            hidden=MappingProxyType({layer: next(moved) for layer in self.hidden}),
            snapshots=tuple(snapshot.with_tensors(moved) for snapshot in self.snapshots),
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
            heads, _, size = layer.shape
            found = heads, size, layer.value_dim
            if found != (shape.kv_heads, shape.head_dim, shape.values):
                raise GeometryMismatch(
                    f"layer {number} of a state has {heads} heads of {size} and {found[2]}",
                    expected=f"{shape.kv_heads} heads of {shape.head_dim} and {shape.values}",
                )
        if self.dtype != dtype:
            raise GeometryMismatch(
                f"a state in {self.dtype}",
                expected=f"{dtype}, as the receiving model computes",
                fix="load both agents' models with one dtype",
            )
