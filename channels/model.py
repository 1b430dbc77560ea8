"""What channels need of a model, and what fits and audits need besides: that it reads text."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from unspoken.channels.kv.geometry import CacheGeometry, ModelIdentity
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.rope import Rotary
from unspoken.channels.kv.state import KVState

if TYPE_CHECKING:
    from unspoken.channels.base import Arrival
    from unspoken.channels.message import Message


@dataclass(frozen=True, slots=True, eq=False)
class Prefill:
    """What a forward pass over new tokens gives.

    Attributes:
        state: State of the whole context, positions 0 to the last token.
        logits: Logits after the last new token, shape (vocabulary,).
        hidden: Hidden states of the new tokens at the inputs of the layers asked for, each (tokens,
            hidden_size).
    """

    state: KVState
    logits: Tensor = field(repr=False)
    hidden: Mapping[int, Tensor] = field(repr=False)


@runtime_checkable
class CausalModel(Protocol):
    """What a channel needs of a model; token ids are (tokens,) int64 on its device, one batch."""

    @property
    def identity(self) -> ModelIdentity:
        """Who it is, by weights, config and tokenizer."""

    @property
    def geometry(self) -> CacheGeometry:
        """The shape of its cache."""

    @property
    def dtype(self) -> torch.dtype:
        """Element type of its cache."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def rotary(self, name: str) -> Rotary:
        """The rotary embedding of a name in its geometry."""

    def embed(self, ids: Tensor) -> Tensor:
        """Input of layer 0 for `ids`, shape (tokens, hidden_size), scaled as the model does."""

    def prefill(
        self,
        ids: Tensor,
        state: Sequence[KVState] = (),
        positions: Tensor | None = None,
        capture: Collection[int] = (),
    ) -> Prefill:
        """Compute `ids` at `positions` over states that already stand at theirs.

        Args:
            ids: New tokens.
            state: States at their final positions; together with `positions` they cover 0 … last
                without a gap. A position that both name is recomputed.
            positions: Ascending, (tokens,); by default those right after the last state.
            capture: Layers whose input is wanted.

        Raises:
            StateError: A gap, or rows missing that a new token must see.
            GeometryMismatch, IdentityMismatch: A state that is not this model's.
        """

    def run_layers(
        self,
        hidden: Tensor,
        first: int,
        last: int,
        positions: Tensor,
        state: Sequence[KVState] = (),
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Run layers first … last - 1 on the input of layer `first`, shape (tokens, hidden_size).

        Args:
            hidden: Input of layer `first`.
            first: First layer to run.
            last: Layer to stop before.
            positions: Ascending and contiguous, (tokens,).
            state: What these tokens see besides themselves; only layers first … last - 1 of it are
                read.

        Returns:
            The input of layer `last`, and the new keys and values of the layers run.
        """

    def logits(
        self,
        ids: Tensor,
        state: Sequence[KVState] = (),
        *,
        last: int | None = None,
        grad: bool = False,
    ) -> Tensor:
        """Logits after the last `last` of `ids`, all by default, shape (tokens, vocabulary).

        The tokens follow the last state. With `grad`, gradients flow back into the keys and values
        of `state`.
        """


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

    @property
    def ref(self) -> str:
        """What to call it; the reference it can be loaded by."""

    @property
    def adapter(self) -> str | None:
        """Its adapter, where it has one."""

    @property
    def max_positions(self) -> int:
        """Positions that it was made for, less where it cannot serve so many."""

    def cast(self, dtype: torch.dtype) -> "TextModel":
        """A copy with weights of another float type: another model, where that rounds them."""

    def tensor(self, ids: Sequence[int]) -> Tensor:
        """Ids as an int64 tensor on its device, (tokens,)."""

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
        """``bare``, what every context starts with, or ``chat``, a user turn of its template."""

    def message(self, text: str) -> "Message":
        """A text that it has read as a user's turn of a context of its own, with its state."""

    def arrival(self, message: "Message", question: str, system: str | None = None) -> "Arrival":
        """A message in its context, a user's turn, with a question's turn after it.

        The ids end where its answer begins.
        """


Report = Callable[[str, float], None]
"""Told of a stage, and how much of it is done, 0 to 1."""

Hold = Callable[[], AbstractContextManager[object]]
"""Keeps the devices of two models from other work while a fit or an audit computes on them."""


def rotaries(model: CausalModel) -> Mapping[str, Rotary]:
    """A model's rotary embeddings by the names that its geometry uses."""
    return {name: model.rotary(name) for name in model.geometry.ropes}


@runtime_checkable
class Branching(Protocol):
    """A model that computes several continuations of one context in one pass."""

    def branch_logits(
        self,
        branches: Sequence[Tensor],
        last: Sequence[int],
        state: Sequence[KVState] = (),
        *,
        grad: bool = False,
    ) -> list[Tensor]:
        """Logits of each continuation as if it alone followed the states.

        Args:
            branches: Ids of each, (tokens,).
            last: Of how many of its last tokens logits are wanted.
            state: The context, whole.
            grad: As `CausalModel.logits` has it.

        Returns:
            For each, (its `last`, vocabulary).
        """


@runtime_checkable
class OnSeveralDevices(Protocol):
    """What a model has besides where its layers may be on several devices."""

    @property
    def layer_devices(self) -> tuple[torch.device, ...]:
        """Where each layer computes, and has its keys and values."""


def layer_devices(model: CausalModel) -> tuple[torch.device, ...]:
    """Where each layer of a model wants its rows of a state."""
    if isinstance(model, OnSeveralDevices):
        return model.layer_devices
    return (model.device,) * len(model.geometry.layers)
