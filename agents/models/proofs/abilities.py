"""What a model can do with states, for people and for the sweep over all architectures."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Protocol

from unspoken.agents.models.notes import KeyPositions


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What a model can do; for each None where it can, else why not.

    Attributes:
        text: Write an answer to a text.
        continuation: Go on from the state of the tokens before.
        splice: Take a state over at other positions, or after other tokens.
        recompute: Compute some layers of a state anew, as between fine-tunes of one base.
        sharer: Give its state to a bridge.
        receiver: Take a bridge's state.
        batched: Have its turns computed in one forward with others.
    """

    text: str | None = None
    continuation: str | None = None
    splice: str | None = None
    recompute: str | None = None
    sharer: str | None = None
    receiver: str | None = None
    batched: str | None = None

    def __iter__(self) -> Iterator[tuple[str, str | None]]:
        """Each ability with why it is lacking, in order."""
        for field in fields(self):
            yield field.name, getattr(self, field.name)


class Proved(Protocol):
    """What is proved of a model before its states are handed over."""

    @property
    def key_positions(self) -> tuple[KeyPositions, ...]:
        """What each layer's keys hold of their positions."""

    @property
    def refuses_states(self) -> str | None:
        """Why a context cannot be continued over its state."""

    @property
    def refuses_fills(self) -> str | None:
        """Why tokens between rows that stand already cannot be computed."""

    @property
    def refuses_layers(self) -> str | None:
        """Why layers cannot be run without those before them."""

    @property
    def refuses_maps(self) -> str | None:
        """Why its rows are not those that a bridge or a profile takes."""

    @property
    def refuses_gradients(self) -> str | None:
        """Why a bridge into it cannot be trained."""

    @property
    def refuses_batches(self) -> str | None:
        """Why its turns are computed one by one."""


def abilities_of(model: Proved) -> Abilities:
    """What a model can do, as proved on the model itself."""
    moves = None
    if "other" in model.key_positions:
        odd = model.key_positions.count("other")
        count = "its" if odd == len(model.key_positions) else f"{odd} of its layers'"
        moves = f"{count} keys hold positions in a way that nothing moves"
    placed = model.refuses_fills or moves
    return Abilities(
        continuation=model.refuses_states,
        splice=placed,
        recompute=model.refuses_layers or model.refuses_fills or model.refuses_maps,
        sharer=model.refuses_maps or moves,
        receiver=model.refuses_maps or placed or model.refuses_gradients,
        batched=model.refuses_batches,
    )
