"""A bridge that needs no fit."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from unspoken.agents.models.base import AgentModel
from unspoken.channels.bridges.bounds import AuditBounds
from unspoken.channels.errors import IdentityMismatch
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import CausalModel

SHOWN = AuditBounds(
    contexts=200, message_kept=0.95, sharer_adds=0.1, task_difference=-0.01, fuse_adds=0.05
)
"""What the audit of a good bridge shows."""


@dataclass(frozen=True, slots=True)
class _End:
    ref: str
    identity: ModelIdentity

    def to_identity(self) -> ModelIdentity:
        return self.identity


@dataclass(frozen=True, slots=True)
class _Ends:
    sharer: _End
    receiver: _End


@dataclass(eq=False)
class FakeBridge:
    """A bridge that makes the receiver's own true rows, as a perfect fit would; it learns nothing.

    Hand it to an edge with ``flow.connect(reader, solver, ProjectedCacheChannel(bridge))``.

    Attributes:
        sharer, receiver: The two models.
        bounds: What it claims that its audit showed; None for no audit.
        native_layers: Layers of the receiver that it claims to run itself.
        needs_full_state: Whether it reads all rows of the sharer's sliding layers.
        fuses: Whether it can enrich the receiver's own rows.
        measure_here: The command that would make it trusted; None where it is trusted.
        asked: Per projection, the sharer's positions that it read and the receiver's ids.
    """

    sharer: AgentModel
    receiver: AgentModel
    bounds: AuditBounds | None = SHOWN
    native_layers: int = 0
    needs_full_state: bool = True
    fuses: bool = True
    measure_here: str | None = None
    asked: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    @property
    def manifest(self) -> _Ends:
        """Its two ends."""
        return _Ends(
            _End(self.sharer.ref or "sharer", self.sharer.identity),
            _End(self.receiver.ref or "receiver", self.receiver.identity),
        )

    def check(self, sharer: CausalModel, receiver: CausalModel) -> None:
        """Refuse other models than its own two."""
        for given, mine in ((sharer, self.sharer), (receiver, self.receiver)):
            if given.identity != mine.identity:
                raise IdentityMismatch(
                    "a bridge of other models",
                    field=mine.identity.differing(given.identity) or "weights",
                    expected="the two models that it was made for",
                    fix="make a FakeBridge of these two",
                )

    def project(
        self,
        state: KVState,
        rows: Sequence[int],
        context: Sequence[int],
        at: int,
        receiver: CausalModel,
    ) -> KVState:
        """The receiver's state of positions at … at + len(rows) - 1, as it computes them itself."""
        for layer in state.layers:
            assert layer.first <= min(rows), "rows that the sharer's state lacks"
        assert max(rows) < state.stop, "rows after the sharer's state"
        stop = at + len(rows)
        self.asked.append((tuple(rows), tuple(context[at:stop])))
        ids = torch.tensor(context[:stop], dtype=torch.long, device=receiver.device)
        return receiver.prefill(ids).state.slice(at, stop)

    def fuse(
        self, state: KVState, rows: Sequence[int], own: KVState, at: int, receiver: CausalModel
    ) -> KVState:
        """The receiver's own rows, with values a little larger."""
        assert max(rows) < state.stop, "rows after the sharer's state"
        piece = own.slice(at, at + len(rows))
        layers = tuple(
            LayerState(layer.keys, layer.values * 1.5, layer.first) for layer in piece.layers
        )
        return replace(piece, layers=layers)

    def describe(self) -> str:
        """What it is, for people."""
        return "a fake, which makes the receiver's own rows"
