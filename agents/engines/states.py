"""Where an engine keeps states: tickets, how they are kept, and the memory of a turn."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch

from unspoken.agents.engines.outcome import StateRef
from unspoken.channels.kv.codec import Codec
from unspoken.channels.kv.compressed import CompressedState
from unspoken.channels.kv.geometry import CacheGeometry, ModelIdentity
from unspoken.channels.kv.state import KVState


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """How a state is kept.

    Attributes:
        codec: In how many bytes.
        trimmed: Whether it will only be continued: rows of sliding layers that no later token sees
            are let go.
        holder: Who holds the ticket, for statistics.
    """

    codec: Codec = "raw"
    trimmed: bool = False
    holder: str = ""


KEEP = Keep()
"""As it is."""


Form = tuple[int, Codec, bool]
"""How a kept copy differs from its state: number of tokens, codec, whether it is trimmed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixQuery:
    """A context for which a state is looked for that begins as it does.

    Attributes:
        identity: Whose states serve.
        geometry: The shape of their cache.
        dtype: Their element type.
        devices: Where they are, layer by layer.
        ids: The context's ids, but for those that are computed in any case.
        more_than: What is not worth it: so many tokens or fewer.
        capture: Layers whose hidden states they must have, for all tokens.
    """

    identity: ModelIdentity
    geometry: CacheGeometry
    dtype: torch.dtype
    devices: tuple[torch.device, ...]
    ids: tuple[int, ...]
    more_than: int = 0
    capture: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRequest:
    """What a turn needs before it starts.

    Attributes:
        device: Where it computes.
        refs: States that it reads: they are in memory, and stay there, until it ends.
        nbytes: Bytes that it makes itself at most, after so many tokens from the index.
        query: What else it would take over; None for nothing.
        owner: Who asks, for errors.
        must_fit: Whether it cannot go on without; else it does, where it would wait for ever.
    """

    device: torch.device
    refs: tuple[StateRef, ...]
    nbytes: Callable[[int], int]
    query: PrefixQuery | None = None
    owner: str = ""
    must_fit: bool = True


class Lease(Protocol):
    """Memory that a turn may use, and the states that it reads."""

    @property
    def found(self) -> tuple[tuple[int, ...], KVState] | None:
        """The ids and the state of another turn that begins as this one does, if there is one."""

    @property
    def lost(self) -> frozenset[StateRef]:
        """Tickets whose states cannot be read from disk again."""

    def handing_over(self) -> AbstractContextManager[None]:
        """Give the memory back for a state that is put in the block.

        No other turn gets the memory before the state counts. The lease ends by itself otherwise.
        """


class States(Protocol):
    """Where an engine keeps states; see `unspoken.agents.runtime.states.StateStore`."""

    @property
    def retains(self) -> bool:
        """Whether a state is of use without a reader: a later turn may begin as it does."""

    def lease(self, request: LeaseRequest) -> AbstractAsyncContextManager[Lease]:
        """Wait for the memory of a turn, in the order of asking.

        Raises:
            RunError: A turn that does not fit, even alone.
        """

    def put(
        self,
        state: KVState | CompressedState,
        ids: tuple[int, ...],
        holder: str = "",
        source: tuple[StateRef, Form] | None = None,
    ) -> StateRef:
        """Keep a state of `ids`; the ticket of an equal one where there is one.

        Args:
            state: The state.
            ids: Token ids of its context, from position 0 to its last token.
            holder: Who holds the ticket, for statistics.
            source: The state it was made from, and in what form, where a copy was made.
        """

    def derived(self, source: StateRef, form: Form, holder: str = "") -> StateRef | None:
        """A ticket for what was made of a state in this form before, where it is there still."""

    def get(self, ref: StateRef) -> KVState | CompressedState:
        """The state of a ticket that was not given back; without a lease it may come from disk."""

    def about(self, ref: StateRef) -> KVState | CompressedState:
        """The same for its shape alone: its rows need not be in memory."""

    def release(self, ref: StateRef) -> None:
        """Give a ticket back; the last one frees the state."""
