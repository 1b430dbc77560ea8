"""The state of recurrent layers at one position.

A recurrent layer folds all tokens into tensors of one size. They stand for the tokens before one
position, and for no fewer of them: nothing can be cut off, moved, or put before other tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What the recurrent layers of a model have of the tokens before a position.

    Attributes:
        at: The position; a model goes on from here.
        layers: By number of the layer, its tensors by the names of `RecurrentPart`. They never
            change.
    """

    at: int
    layers: Mapping[int, Mapping[str, Tensor]]

    def __repr__(self) -> str:
        return f"<Snapshot of {len(self.layers)} recurrent layers at {self.at}>"

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def tensors(self) -> Iterator[Tensor]:
        """Its tensors, layer by layer."""
        for parts in self.layers.values():
            yield from parts.values()

    def with_tensors(self, tensors: Iterator[Tensor]) -> "Snapshot":
        """The same snapshot over other tensors, in the order of `tensors`."""
        layers = {
            number: {name: next(tensors) for name in parts} for number, parts in self.layers.items()
        }
        return Snapshot(self.at, layers)


def last_before(snapshots: Sequence[Snapshot], stop: int) -> Snapshot | None:
    """The last snapshot at or before a position, if there is one."""
    return max((one for one in snapshots if one.at <= stop), key=lambda one: one.at, default=None)
