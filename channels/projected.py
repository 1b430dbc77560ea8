"""The state of another model, mapped into the receiver's by a bridge trained for the two."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from shlex import join
from typing import ClassVar, Literal, Protocol

import torch

from unspoken.channels.base import Arrival, Carry, CarryReport, Channel, Piece, Role, Share
from unspoken.channels.bridges.align import Run, aligned
from unspoken.channels.bridges.bounds import AuditBounds
from unspoken.channels.errors import BridgeError, IdentityMismatch, InputError, StateError
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import CausalModel


class BridgeEnd(Protocol):
    """A model, as a bridge's manifest names it."""

    @property
    def ref(self) -> str:
        """What to call it."""

    def to_identity(self) -> ModelIdentity:
        """Which model it is."""


class BridgeEnds(Protocol):
    """Between which models a bridge leads; part of its manifest."""

    @property
    def sharer(self) -> BridgeEnd:
        """The model whose state it reads."""

    @property
    def receiver(self) -> BridgeEnd:
        """The model whose state it makes."""


class Bridge(Protocol):
    """What the channel needs of a bridge."""

    @property
    def manifest(self) -> BridgeEnds:
        """Its two ends."""

    @property
    def native_layers(self) -> int:
        """Layers of the receiver that it runs itself over the message."""

    @property
    def needs_full_state(self) -> bool:
        """Whether it reads all rows of the sharer's sliding layers over the message."""

    @property
    def fuses(self) -> bool:
        """Whether it can enrich the receiver's own rows."""

    @property
    def bounds(self) -> AuditBounds | None:
        """What an edge is held to; None without an audit to believe."""

    @property
    def measure_here(self) -> str | None:
        """The command that measures it on this machine, where only that would make it trusted."""

    def check(self, sharer: CausalModel, receiver: CausalModel) -> None:
        """Refuse other models than its own two.

        Raises:
            IdentityMismatch, GeometryMismatch, ModelSupportError: naming what differs.
        """

    def project(
        self,
        state: KVState,
        rows: Sequence[int],
        context: Sequence[int],
        at: int,
        receiver: CausalModel,
    ) -> KVState:
        """The receiver's state of positions at … at + len(rows) - 1.

        Args:
            state: The sharer's state, where it is; a bridge copies the rows it reads.
            rows: The sharer's position for each of these tokens.
            context: All ids of the receiver's context.
            at: Position of the first token.
            receiver: The receiver.
        """

    def fuse(
        self, state: KVState, rows: Sequence[int], own: KVState, at: int, receiver: CausalModel
    ) -> KVState:
        """The receiver's own rows of positions at … at + len(rows) - 1, enriched by the sharer's.

        Args:
            state: The sharer's state, where it is; a bridge copies the rows it reads.
            rows: The sharer's position for each of these tokens.
            own: The receiver's own state from position 0 to the last of these or further.
            at: Position of the first token.
            receiver: The receiver.

        Raises:
            BridgeError: It cannot.
        """

    def describe(self) -> str:
        """Its size and what it keeps, in a few words."""


@dataclass(frozen=True, slots=True)
class ProjectedCacheChannel(Channel):
    """Hand over keys and values between different models, through a bridge trained for the two.

    Every word token of the message takes the sharer's token that has read the same text. The bridge
    makes the receiver's keys and values of it. The receiver computes the first `sink` tokens
    itself.

    In fuse mode (Cache-to-Cache, arXiv 2510.03215) the receiver reads the message itself, and the
    bridge enriches the rows it made. That saves nothing; it adds what the sharer knows.

    Attributes:
        bridge: The bridge.
        share: What the sharer publishes; None stands for its output, or its prompt where it
            generates nothing.
        as_: Role of the message's turn in the receiver's template.
        sink: Tokens of the message that the receiver computes; 0 for none, a number past its
            length for all. Fuse mode computes all.
        mode: ``prefix`` or ``fuse``.
        longest: Tokens of the longest messages that the bridge was measured on. Prefix mode takes
            none beyond twice as many; None for any.
    """

    name: ClassVar[str] = "projected_cache"
    carries_state: ClassVar[bool] = True

    bridge: Bridge
    _: KW_ONLY
    share: Share | None = None
    as_: Role = "user"
    sink: int = 4
    mode: Literal["prefix", "fuse"] = "prefix"
    longest: int | None = None

    def __post_init__(self) -> None:
        needed = ("manifest", "native_layers", "check", "project")
        lacking = [name for name in needed if not hasattr(self.bridge, name)]
        if lacking:
            raise InputError(
                f"the bridge, of type {type(self.bridge).__name__}, has no {lacking[0]}",
                expected="a bridge, such as Bridge.load(folder) gives",
                fix='name the channel alone, "projected_cache", for a bridge of the store',
            )
        if self.sink < 0:
            raise InputError(f"sink is {self.sink}", expected="0 or more tokens to recompute")

    def check(self, sharer: CausalModel, receiver: CausalModel) -> None:
        """Both ends must be the bridge's own.

        Raises:
            IdentityMismatch, GeometryMismatch, ModelSupportError: naming what differs.
            BridgeError: Fuse mode, and the bridge was fitted without it.
        """
        self.bridge.check(sharer, receiver)
        if self.mode == "fuse" and not self.bridge.fuses:
            ends = self.bridge.manifest
            raise BridgeError(
                f"the bridge {ends.sharer.ref} -> {ends.receiver.ref} was fitted without fuse mode",
                expected="a bridge that was fitted with fuse mode",
                fix="fit it with fuse=FuseSettings() in a FitPlan, or "
                f"`unspoken bridge fit {join((ends.sharer.ref, ends.receiver.ref))} --fuse`",
            )

    def carry(self, arrival: Arrival, receiver: CausalModel) -> Carry:
        """Project the message's tokens, but the first; in fuse mode, enrich what a prefill gives.

        Raises:
            BridgeError: Fuse mode, and the bridge was fitted without it.
            IdentityMismatch: The state or the receiver is not the bridge's.
            GeometryMismatch: The bridge made a state of another shape than the receiver's.
            StateError: The message has no state or lacks rows of it, its words are not in the
                receiver's context, or it is longer than `longest` allows.
        """
        message, state = arrival.message, arrival.message.require_state()
        ends = self.bridge.manifest
        _require(ends.sharer, state.identity, f"the cache of {message.sharer!r}", "from")
        _require(ends.receiver, receiver.identity, "the receiver", "to")
        runs = aligned(arrival)
        if not runs:
            raise StateError(
                f"the receiver's context does not hold the words of {message.sharer!r} as they are",
                expected="the message's whole text in the receiver's context",
                fix="print the message whole and unfiltered in the prompt, or use a text channel",
            )
        if self.bridge.needs_full_state:
            _check_rows(state, min(min(run.rows) for run in runs))
        if self.mode == "fuse":
            return self._fuse(state, runs, arrival, receiver)
        if self.longest is not None and arrival.tokens > 2 * self.longest:
            raise StateError(
                f"the message has {arrival.tokens} tokens, and the bridge's audit knows "
                f"{self.longest} at most",
                expected="at most twice as many tokens as it was measured on",
                fix="use a text channel, or ask nothing: min_retention: 0 and max_loss: 1",
            )
        projected = []
        for run in runs:
            mapped = self.bridge.project(state, run.rows, arrival.context, run.at, receiver)
            projected.append(Piece(_checked(mapped, run, receiver), "projected"))
        positions = [position for run in runs for position in range(run.at, run.stop)]
        repair = tuple(positions[: self.sink])
        report = self._report(arrival, runs, len(repair), state)
        return Carry(report, pieces=tuple(projected), repair=repair)

    def _fuse(
        self, state: KVState, runs: Sequence[Run], arrival: Arrival, receiver: CausalModel
    ) -> Carry:
        """The receiver's own prefill up to the message's end, the message's rows enriched."""
        first, stop = runs[0].at, max(run.stop for run in runs)
        ids = torch.tensor(arrival.context[:stop], device=receiver.device)
        computed = receiver.prefill(ids).state
        fused = []
        for run in runs:
            enriched = self.bridge.fuse(state, run.rows, computed, run.at, receiver)
            fused.append(Piece(_checked(enriched, run, receiver), "fused"))
        ends = self.bridge.manifest
        report = CarryReport(
            channel=self.name,
            mode="fused",
            exact=False,
            reason=f"fused: bridge {ends.sharer.ref} -> {ends.receiver.ref} enriched what the "
            "receiver computed",
            tokens=arrival.tokens,
            bytes=_bytes(state, runs),
            layer_tokens=len(receiver.geometry.layers) * stop,
        )
        prefix = Piece(computed.slice(0, first), "computed") if first else None
        return Carry(report, prefix=prefix, pieces=tuple(fused))

    def _report(
        self, arrival: Arrival, runs: Sequence[Run], repaired: int, state: KVState
    ) -> CarryReport:
        ends, native = self.bridge.manifest, self.bridge.native_layers
        return CarryReport(
            channel=self.name,
            mode="projected",
            exact=False,
            reason=f"projected: bridge {ends.sharer.ref} -> {ends.receiver.ref}, "
            f"{self.bridge.describe()}",
            tokens=arrival.tokens,
            repaired=repaired,
            bytes=_bytes(state, runs),
            projected=sum(len(run.rows) for run in runs) - repaired,
            layer_tokens=native * sum(run.stop for run in runs),
        )


def _checked(state: KVState, run: Run, receiver: CausalModel) -> KVState:
    """A state that a bridge made, as the receiver's.

    Raises:
        GeometryMismatch: Another shape than the receiver's.
        StateError: Other positions than the run's.
    """
    if (state.start, state.stop) != (run.at, run.stop):
        raise StateError(
            f"the bridge made a state of positions {state.start} to {state.stop}",
            expected=f"positions {run.at} to {run.stop}",
        )
    state.check(receiver.geometry, receiver.dtype)
    return replace(state, identity=receiver.identity, approximate_from=run.at)


def _bytes(state: KVState, runs: Sequence[Run]) -> int:
    """Bytes of the sharer's state that some runs read."""
    return sum(state.slice(min(run.rows), max(run.rows) + 1).nbytes for run in runs)


def _require(end: BridgeEnd, identity: ModelIdentity, what: str, direction: str) -> None:
    wanted = end.to_identity()
    field = wanted.differing(identity)
    if field is None:
        return
    raise IdentityMismatch(
        f"{what} is of a model with other {field}: {getattr(identity, field)[:16]}",
        field=field,
        expected=f"{field} {getattr(wanted, field)[:16]}, of {end.ref}, which it leads {direction}",
        fix="fit a bridge for these two models, or use a text channel",
    )


def _check_rows(state: KVState, first: int) -> None:
    for number, layer in enumerate(state.layers):
        if layer.first > first:
            raise StateError(
                f"layer {number} of the sharer holds nothing before position {layer.first}",
                expected=f"rows from position {first} on, where the message begins",
                fix="do not trim a state that a bridge will read",
            )
