"""A trained bridge, ready to carry states between its two models."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor

from unspoken.channels.bridges.bounds import AuditBounds
from unspoken.channels.bridges.features import bare_rows
from unspoken.channels.bridges.folder import read
from unspoken.channels.bridges.fuser import (
    Fuser,
    fuse_tensors,
    fused_state,
    fuser_of,
    own_rows,
    without_fuser,
)
from unspoken.channels.bridges.manifest import BridgeManifest
from unspoken.channels.bridges.projection import (
    blocks_of,
    feature_rows,
    native_part,
    state_of_blocks,
)
from unspoken.channels.bridges.projector import Projector, ProjectorConfig, without_gates
from unspoken.channels.bridges.quantize import dequantize, load_quantized, quantize
from unspoken.channels.bridges.trust import measured_here
from unspoken.channels.errors import BridgeError
from unspoken.channels.kv.geometry import LayerGeometry
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import CausalModel
from unspoken.channels.storage.side import ModelDescription


def tensors_of(
    projector: Projector, dtype: str = "int8", fuser: Fuser | None = None
) -> dict[str, Tensor]:
    """A projector's weights, and a fuser's beside them, as `folder.write` stores them."""
    fused = {} if fuser is None else fuse_tensors(fuser, dtype)
    return {**quantize(projector.state_dict(), dtype), **fused}


class Bridge:
    """The trained module of a pair, with its manifest.

    Args:
        manifest: Whose caches it maps, and how good it is.
        projector: The module.
        fuser: The module of fuse mode, where it was fitted.

    Attributes:
        manifest, projector, fuser: As given.
        measure_here: The command that measures it on this machine; None where it was made or
            measured here, or the user trusts it.
        trusted: Whether it was made elsewhere, and the user trusts its audit.
    """

    needs_full_state = True

    def __init__(
        self, manifest: BridgeManifest, projector: Projector, fuser: Fuser | None = None
    ) -> None:
        self.manifest = manifest
        self.projector = projector.eval().requires_grad_(False)
        self.fuser = None if fuser is None else fuser.eval().requires_grad_(False)
        self._geometry = manifest.sharer.to_geometry()
        self.measure_here: str | None = None
        self.trusted = False
        self._rotary: dict[torch.device, Mapping[str, Any]] = {}

    @classmethod
    def load(
        cls, folder: Path, device: torch.device | str = "cpu", *, trust: bool = False
    ) -> "Bridge":
        """Read a bridge's folder, strictly.

        Args:
            folder: The bridge.
            device: Where its weights are to be.
            trust: Whether to believe an audit that was made on another machine.

        Raises:
            BridgeError: Something in it is broken or does not belong there.
        """
        manifest, tensors = read(folder)
        bridge = cls.from_tensors(manifest, tensors, device)
        if not measured_here(manifest):
            bridge.trusted = trust
            command = f"unspoken bridge audit {quote(str(folder))} --save"
            bridge.measure_here = None if trust else command
        return bridge

    @classmethod
    def from_tensors(
        cls, manifest: BridgeManifest, tensors: Mapping[str, Tensor], device: torch.device | str
    ) -> "Bridge":
        """A bridge of a manifest and its stored tensors."""
        sharer, receiver = manifest.sharer.to_geometry(), manifest.receiver.to_geometry()
        fuser = fuser_of(manifest.config, tensors, sharer, receiver)
        settings, weights = without_fuser(manifest.config, tensors)
        if "gate" in weights:  # fitted when projectors had gates
            weights = without_gates(dequantize(weights), receiver)

        def build() -> Projector:
            return Projector(ProjectorConfig.from_dict(settings), sharer, receiver)

        projector = load_quantized(build, weights, "weights").to(device)
        return cls(manifest, projector, None if fuser is None else fuser.to(device))

    @property
    def native_layers(self) -> int:
        """Layers of the receiver that it runs itself over the message."""
        return self.projector.config.native_layers

    @property
    def fuses(self) -> bool:
        """Whether it was fitted for fuse mode too."""
        return self.fuser is not None

    @property
    def bounds(self) -> AuditBounds | None:
        """What an edge is held to; None without an audit to believe."""
        audit = self.manifest.audit
        return None if audit is None or self.measure_here else audit.bounds

    def describe(self) -> str:
        """Its size and what it keeps, in a few words."""
        said = [f"rank {self.projector.config.rank}"]
        if self.native_layers:
            said.append(f"{self.native_layers} native layers")
        said.append(f"{self.manifest.tensors.bytes / 1e6:.0f} MB")
        audit = self.manifest.audit
        kept = audit.figure("message_kept") if audit else None
        if kept is not None:
            said.append(f"keeps {kept:.2f} of a message")
        if self.trusted or self.measure_here:
            said.append("measured elsewhere" if audit is not None else "made elsewhere")
        return ", ".join(said)

    def check(self, sharer: CausalModel, receiver: CausalModel) -> None:
        """Refuse other models than its own two.

        Raises:
            IdentityMismatch: naming what differs.
            BridgeError: It takes its models' layers for other ones than they are.
        """
        self.manifest.sharer.to_identity().require(sharer.identity, "the sharer")
        self.manifest.receiver.to_identity().require(receiver.identity, "the receiver")
        for fitted, model in ((self.manifest.sharer, sharer), (self.manifest.receiver, receiver)):
            _check_model(fitted, model)

    @torch.no_grad()
    def project(
        self,
        state: KVState,
        rows: Sequence[int],
        context: Sequence[int],
        at: int,
        receiver: CausalModel,
    ) -> KVState:
        """The receiver's state of some positions; see `unspoken.channels.projected.Bridge`."""
        config = self.projector.config
        if self.projector.mean.device != receiver.device:
            self.projector.to(receiver.device)
        ids = context[: at + len(rows)]
        hidden, native = native_part(receiver, config.native_layers, ids, at)

        def features(block: slice) -> Tensor:
            theirs = self._bare(state, config.source_layers, rows[block], receiver.device)
            own = None if hidden is None else hidden[block]
            first = at + block.start
            return feature_rows(config, theirs, ids[: at + block.stop], first, receiver, own)

        blocks = map(features, blocks_of(len(rows)))
        return state_of_blocks(self.projector, blocks, len(rows), native, at, receiver)

    @torch.no_grad()
    def fuse(
        self, state: KVState, rows: Sequence[int], own: KVState, at: int, receiver: CausalModel
    ) -> KVState:
        """The receiver's own rows, enriched; see `unspoken.channels.projected.Bridge`.

        Raises:
            BridgeError: It was fitted without fuse mode.
        """
        if self.fuser is None:
            ends = self.manifest
            raise BridgeError(
                f"the bridge {ends.sharer.ref} -> {ends.receiver.ref} was fitted without fuse mode",
                expected="a bridge with a fuser",
                fix="fit it with fuse=FuseSettings() in a FitPlan, or "
                f"`unspoken bridge fit {ends.sharer.ref} {ends.receiver.ref} --fuse`",
            )
        if self.fuser.mean.device != receiver.device:
            self.fuser.to(receiver.device)
        theirs = self._bare(state, self.fuser.config.source_layers, rows, receiver.device)
        mine = own_rows(own.slice(0, at + len(rows)), at, receiver)
        return fused_state(self.fuser, theirs, mine, at, receiver)

    def _bare(
        self, state: KVState, layers: Sequence[int], rows: Sequence[int], device: torch.device
    ) -> Tensor:
        """The sharer's bare rows of some layers at some positions, (tokens, columns)."""
        if device not in self._rotary:
            self._rotary[device] = self.manifest.sharer.to_rotary(device)
        asked = torch.tensor(rows, device=device)
        once = torch.tensor(sorted(set(rows)), device=device)  # several tokens may read one row
        rows_once = bare_rows(state, layers, once, self._geometry, self._rotary[device])
        return rows_once.index_select(0, torch.searchsorted(once, asked))


def _check_model(fitted: ModelDescription, model: CausalModel) -> None:
    """Refuse a manifest that describes another cache than its model has.

    It was fitted before the model's layers were proved one by one, or was changed by hand.
    """
    before, proved = fitted.to_geometry().layers, model.geometry.layers
    rotary = fitted.to_rotary(model.device)
    for number, (layer, real) in enumerate(zip_longest(before, proved)):
        if layer is None or real is None or _shape(layer) != _shape(real):
            what = f"layer {number} of {fitted.ref} to be {_shape(layer)}"
            raise _other_cache(what, f"{_shape(real)}, as was proved on the model")
        if real.rope is None:
            continue
        fitted_rotary, turns = rotary[real.rope], model.rotary(real.rope)
        ours, theirs = fitted_rotary.inverse_frequencies, turns.inverse_frequencies.float()
        same = ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-4, atol=0)
        if not same or abs(fitted_rotary.scale - turns.scale) > 1e-4 * abs(turns.scale):
            raise _other_cache(
                f"the rotary embedding {real.rope} of {fitted.ref} for another",
                "the frequencies that the model has",
            )


def _shape(layer: LayerGeometry | None) -> str:
    if layer is None:
        return "none"
    return f"{layer.kv_heads} heads of {layer.head_dim}, rotated by {layer.rope}"


def _other_cache(what: str, expected: str) -> BridgeError:
    return BridgeError(
        f"the bridge takes {what}",
        expected=expected,
        fix="fit the bridge again: `unspoken bridge fit … --refit`, or refit=True in a FitPlan",
    )
