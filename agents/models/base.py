"""What a workflow needs of a model, and what a turn computed in this process needs besides."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from unspoken.channels.model import CausalModel

if TYPE_CHECKING:
    from unspoken.agents.models.ragged.segment import Rows, Segment
    from unspoken.agents.models.weights import Weights
    from unspoken.agents.prompts.chat_template import ChatTemplate
    from unspoken.agents.prompts.context import ContextBuilder
    from unspoken.agents.prompts.tokenizer import TextTokenizer
    from unspoken.channels.kv.state import KVState


class AgentModel(CausalModel, Protocol):
    """What a workflow needs of a model: how words become ids, and what a plan asks.

    Who computes its turns is another matter. A model that has `make_engine` brings its own engine
    (see `unspoken.agents.engines.base.HasEngine`); a `LocalModel` gets the engine of this process.
    """

    @property
    def ref(self) -> str:
        """The reference it can be loaded by; empty for a model made in memory."""

    @property
    def adapter(self) -> str | None:
        """Its adapter, where it has one."""

    @property
    def asked(self) -> Mapping[str, object]:
        """``dtype``, ``device``, ``revision``, ``template`` as asked for, those that were."""

    @property
    def max_positions(self) -> int:
        """Longest context, in tokens."""

    @property
    def shifts_keys(self) -> bool:
        """Whether its keys are rotated the way its rotary embeddings say, so that they can move."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end the assistant's turn."""

    @property
    def generation(self) -> Mapping[str, object]:
        """What its checkpoint asks of sampling, by transformers' names; empty where nothing."""

    @property
    def text(self) -> "TextTokenizer":
        """Its tokenizer."""

    @property
    def template(self) -> "ChatTemplate":
        """Its chat template, taken apart."""

    @property
    def context_builder(self) -> "ContextBuilder":
        """Composes contexts with both."""


class TurnModel(CausalModel, Protocol):
    """What `LocalEngine` computes a turn with. Gradients are off around every call."""

    @property
    def ref(self) -> str:
        """What to call it."""

    @property
    def max_positions(self) -> int:
        """Longest context, in tokens."""

    @property
    def shifts_keys(self) -> bool:
        """Whether its keys can be moved to other positions."""

    @property
    def refuses_fills(self) -> str | None:
        """Why tokens between rows that stand already cannot be computed; None where they can."""

    @property
    def weights(self) -> "Weights | None":
        """The weights it computes on; None for a model that has none."""

    @property
    def refuses_batches(self) -> str | None:
        """Why its turns are computed one by one; None where those that are ready are in one."""

    @property
    def refuses_steps(self) -> str | None:
        """Why not even one token of each of several turns is in one, where it refuses batches."""

    @property
    def most_stacked(self) -> int:
        """Most rows of a context whose steps are worth computing with those of others."""

    @property
    def batch_key(self) -> object:
        """Equal for models whose turns may be computed in one forward."""

    def begin(self, states: Sequence["KVState"], positions: Sequence[int], *, spare: int) -> "Rows":
        """The rows of a turn: `states` in place, room for `positions` and `spare` more."""

    def compute(self, segments: Sequence["Segment"]) -> "list[Tensor | None]":
        """Compute new tokens of several turns; per segment the logits it wants, or None."""
