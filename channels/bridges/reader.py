"""What fits and audits need of a model besides its cache: that it reads text."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from unspoken.channels.base import CausalModel
from unspoken.channels.rope import Rotary
from unspoken.channels.state import KVState

__all__ = ["Frame", "TextModel", "rotaries"]


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around a message in a model's context.

    Attributes:
        name: ``bare`` or ``chat``.
        before: Ids before the message's words.
        ask: Ids between a question and its answer.
    """

    name: str
    before: tuple[int, ...]
    ask: tuple[int, ...]


class TextModel(CausalModel, Protocol):
    """A model that also reads text, as fits and audits need it."""

    def words(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of somebody's words, and the character at which each token's text ends."""

    def read(self, ids: Sequence[int], capture: Collection[int] = ()) -> KVState:
        """State of a context of its own, with the inputs of the layers in `capture`."""

    @property
    def shifts_keys(self) -> bool:
        """Whether its keys are rotated the way its rotary embeddings say."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""

    @property
    def stop_ids(self) -> Collection[int]:
        """Ids that end its turn."""

    def frame(self, name: str) -> Frame:
        """``bare`` (nothing but what every context starts with) or ``chat`` (a user turn of its template)."""


def rotaries(model: CausalModel) -> Mapping[str, Rotary]:
    """A model's rotary embeddings by the names that its geometry uses."""
    return {name: model.rotary(name) for name in {layer.rope for layer in model.geometry.layers}}
