"""What is found out about a model on its own weights, once, before states are handed over."""

from functools import cached_property

from unspoken.agents.models.decoders.masks import CHUNKED
from unspoken.agents.models.fast_path.decoder import FastPath
from unspoken.agents.models.hf import Backbone
from unspoken.agents.models.notes import KeyPositions
from unspoken.agents.models.proofs.abilities import Abilities, abilities_of
from unspoken.agents.models.proofs.passes import (
    refuses_fills,
    refuses_gradients,
    refuses_layers,
    refuses_states,
)
from unspoken.agents.models.proofs.positions import prove_positions
from unspoken.agents.models.ragged.forward import prove_fast_path, refusal
from unspoken.agents.models.ragged.steps import most_stacked, refusal_of_steps
from unspoken.channels.errors import ModelSupportError


class Proven:
    """A model of which everything that depends on its architecture is tried, not looked up.

    Attributes:
        backbone: Its layers.
    """

    backbone: Backbone

    def forget_proofs(self) -> None:
        """Find everything out anew when it is asked for: the weights were changed."""
        for name, member in vars(Proven).items():
            if isinstance(member, cached_property):
                self.__dict__.pop(name, None)

    @cached_property
    def key_positions(self) -> tuple[KeyPositions, ...]:
        """What each layer's keys hold of their positions."""
        return prove_positions(self.backbone)

    @property
    def shifts_keys(self) -> bool:
        """Whether keys of all layers can be moved: rotated as its rotary says, or not at all."""
        return "other" not in self.key_positions and self.refuses_fills is None

    @cached_property
    def refuses_states(self) -> str | None:
        """Why a context cannot be continued over its state; None where it can."""
        return refuses_states(self.backbone)

    def check_states(self) -> None:
        """Refuse a model that is not served at all; tried once, so this may be asked often.

        Raises:
            ModelSupportError: A context cannot be continued over its state.
        """
        if self.backbone.device.type == "meta" or self.refuses_states is None:
            return  # on meta there are no values to compare
        raise ModelSupportError(
            f"a {self.backbone.config.model_type} model cannot be served: {self.refuses_states}",
            expected="a model that computes over a cache as it does over the whole text",
            fix="use another model",
        )

    @cached_property
    def refuses_fills(self) -> str | None:
        """Why tokens between rows that stand already cannot be computed; None where they can."""
        return self._folds() or refuses_fills(self.backbone)

    @cached_property
    def refuses_layers(self) -> str | None:
        """Why layers cannot be run without those before them; None where they can."""
        return self._folds() or refuses_layers(self.backbone)

    @cached_property
    def refuses_maps(self) -> str | None:
        """Why its rows are not those that a bridge or a profile takes; None where they are."""
        geometry = self.backbone.geometry
        if geometry.plain:
            return None
        reason = f"rows of keys and values are mapped, and of its layers {geometry.described()}"
        if not geometry.recurrent:
            return reason
        return f"{reason}; for those a text is read through {geometry.described_reading()}"

    @cached_property
    def refuses_gradients(self) -> str | None:
        """Why a bridge into it cannot be trained: no gradient goes through its layers."""
        return refuses_gradients(self.backbone)

    def _folds(self) -> str | None:
        """Why nothing is computed but what follows; None for a model without recurrent layers."""
        geometry = self.backbone.geometry
        if not geometry.recurrent:
            return None
        return (
            f"of its layers {geometry.described()}, and a recurrent one only reads on: tokens at "
            f"another place are read again through {geometry.described_reading()}"
        )

    @cached_property
    def refuses_batches(self) -> str | None:
        """Why turns of this model are computed one by one; None where they are batched."""
        if len(set(self.backbone.layer_devices)) > 1:
            return "its layers are on several devices"
        if CHUNKED in self.backbone.kinds:
            return "its layers see chunks, which packed rows do not know"
        if not self.backbone.geometry.plain:
            why = f"of its layers {self.backbone.geometry.described()}"
            return why if self.refuses_steps else f"{why}; steps of one token are batched"
        return refusal(self.backbone)

    @cached_property
    def refuses_steps(self) -> str | None:
        """Why a token of each of several turns is not computed in one forward; None where it is."""
        geometry = self.backbone.geometry
        if geometry.plain:
            return "its rows are packed, or its turns are computed one by one"
        if len(set(self.backbone.layer_devices)) > 1:
            return "its layers are on several devices"
        if CHUNKED in self.backbone.kinds or any(layer.indexer for layer in geometry.layers):
            return "its layers choose among rows by their places"
        return refusal_of_steps(self.backbone)

    @cached_property
    def most_stacked(self) -> int:
        """Most rows of a context whose steps are worth computing with those of others."""
        return most_stacked(self.backbone)

    @cached_property
    def fast_path(self) -> FastPath | str:
        """Its layers computed with few operations; or why they are not."""
        return prove_fast_path(self.backbone)

    @property
    def abilities(self) -> Abilities:
        """What it can do with states, each proved on this very model."""
        return abilities_of(self)
