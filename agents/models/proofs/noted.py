"""What is known of a model's abilities without its weights: what was noted when it was loaded."""

from dataclasses import dataclass
from pathlib import Path

from unspoken.agents.models.notes import KeyPositions, cached_positions, cached_refusals
from unspoken.agents.models.proofs.abilities import Abilities, abilities_of


@dataclass(frozen=True, slots=True, kw_only=True)
class _Noted:
    key_positions: tuple[KeyPositions, ...]
    refuses_states: str | None
    refuses_fills: str | None
    refuses_layers: str | None
    refuses_maps: str | None
    refuses_gradients: str | None
    refuses_batches: str | None


def noted_abilities(folder: Path) -> dict[str, Abilities]:
    """What the model in `folder` can do, for each way in which it was loaded; none before that."""
    positions = cached_positions(folder)
    states, fills = cached_refusals(folder, "states"), cached_refusals(folder, "fills")
    layers, batches = cached_refusals(folder, "layers"), cached_refusals(folder, "batches")
    maps, gradients = cached_refusals(folder, "maps"), cached_refusals(folder, "gradients")
    others = (fills, layers, maps, gradients, batches)
    ways = [how for how in states if all(how in one for one in others)]
    if positions is None:
        return {}
    return {
        how: abilities_of(
            _Noted(
                key_positions=positions,
                refuses_states=states[how],
                refuses_fills=fills[how],
                refuses_layers=layers[how],
                refuses_maps=maps[how],
                refuses_gradients=gradients[how],
                refuses_batches=batches[how],
            )
        )
        for how in ways
    }
