"""A bridge that cheats: it makes the receiver's own true rows, and notes what it was asked."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from unspoken.agents import LocalModel
from unspoken.channels import CausalModel, KVState, ModelIdentity
from unspoken.channels.errors import IdentityMismatch

__all__ = ["End", "Ends", "FakeBridge", "finder"]


@dataclass(frozen=True)
class End:
    ref: str
    identity: ModelIdentity

    def to_identity(self) -> ModelIdentity:
        return self.identity


@dataclass(frozen=True)
class Ends:
    sharer: End
    receiver: End


@dataclass(eq=False)
class FakeBridge:
    """Between two models; `asked` lists both sides' tokens of every projection."""

    theirs: LocalModel
    ours: LocalModel
    retention_lower_bound: float | None = 0.9
    native_layers: int = 0
    needs_full_state: bool = True
    fuses: bool = True
    asked: list[tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    @property
    def manifest(self) -> Ends:
        return Ends(End("their/model", self.theirs.identity), End("our/model", self.ours.identity))

    def check(self, sharer: CausalModel, receiver: CausalModel) -> None:
        ends = zip((sharer, receiver), (self.theirs, self.ours), strict=True)
        for given, wanted in ends:
            if given.identity != wanted.identity:
                raise IdentityMismatch("a bridge of other models", field="weights", fix="fit one")

    def project(
        self,
        state: KVState,
        rows: Sequence[int],
        context: Sequence[int],
        at: int,
        receiver: CausalModel,
    ) -> KVState:
        assert isinstance(receiver, LocalModel)
        for layer in state.layers:
            assert layer.first <= min(rows) and max(rows) < state.stop
        stop = at + len(rows)
        self.asked.append((tuple(rows), tuple(context[at:stop])))
        return receiver.prefill(receiver.tensor(context[:stop])).state.slice(at, stop)

    def fuse(
        self, state: KVState, rows: Sequence[int], own: KVState, at: int, receiver: CausalModel
    ) -> KVState:
        """The receiver's own rows, with values a little larger."""
        assert max(rows) < state.stop and own.start == 0
        piece = own.slice(at, at + len(rows))
        layers = tuple(replace(layer, values=layer.values * 1.5) for layer in piece.layers)
        return replace(piece, layers=layers)

    def describe(self) -> str:
        return "rank 512, 11 MB, retention 0.93 (specific 0.80)"


def finder(*bridges: FakeBridge) -> Any:
    """Looks for a bridge among these."""

    def find(sharer: LocalModel, receiver: LocalModel) -> FakeBridge | None:
        wanted = sharer.identity, receiver.identity
        for bridge in bridges:
            if (bridge.theirs.identity, bridge.ours.identity) == wanted:
                return bridge
        return None

    return find
