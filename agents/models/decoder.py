"""A causal language model as tensors: ids and states in, states and logits out."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from unspoken.agents.models.decoders.branches import branch_logits
from unspoken.agents.models.decoders.parts import positions_held, unable
from unspoken.agents.models.fast_path.decoder import FastPath
from unspoken.agents.models.hf import Backbone, Capture
from unspoken.agents.models.hf_cache import ContextCache, open_cache
from unspoken.agents.models.identity import config_digest, weights_digest
from unspoken.agents.models.proofs.proven import Proven
from unspoken.agents.models.ragged.forward import packed_forward
from unspoken.agents.models.ragged.segment import Rows, Segment
from unspoken.agents.models.ragged.sequence import open_sequence
from unspoken.agents.models.ragged.steps import stacked_step
from unspoken.agents.models.weights import Weights
from unspoken.channels.errors import StateError
from unspoken.channels.kv.geometry import CacheGeometry, ModelIdentity
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.rope import Rotary
from unspoken.channels.kv.state import KVState
from unspoken.channels.kv.transfer import numbers_at
from unspoken.channels.model import Prefill

CHUNK = 256
"""Most tokens one prefill pass takes, so that a cancel never waits long."""


class Decoder(Proven):
    """A model that computes over states and knows no words.

    Args:
        backbone: Its layers.
        identity: Its identity.
    """

    def __init__(self, backbone: Backbone, identity: ModelIdentity) -> None:
        self.backbone = backbone
        self._identity = identity
        self._generation = backbone.generation(wait=True)

    @property
    def identity(self) -> ModelIdentity:
        """Who it is, by weights, config and tokenizer.

        Whoever trains or merges the weights in memory makes another model of it. So each time it is
        asked, the weights are looked at (see `unspoken.agents.models.watch`).
        """
        self._recognise(wait=False)
        return self._identity

    def _recognise(self, *, wait: bool) -> None:
        """Compute the identity anew where the weights were changed from outside."""
        generation = self.backbone.generation(wait=wait)
        if generation == self._generation:
            return
        with self.weights.lock:
            self._identity = self._values_identity()
            self._generation = generation
        self.forget_proofs()
        self.__dict__.pop("geometry", None)

    def _values_identity(self) -> ModelIdentity:
        """The identity of the weights' values and the configuration as they are now."""
        model, words = self.backbone.model, self._identity.tokenizer
        return ModelIdentity(weights_digest(model), config_digest(model.config), words)

    @property
    def weights(self) -> Weights:
        """The weights it computes on, perhaps shared with other models."""
        return self.backbone.weights

    @cached_property
    def geometry(self) -> CacheGeometry:
        """The shape of its cache, and which of its layers hold positions."""
        described = self.backbone.geometry
        layers = tuple(
            replace(layer, rope=None) if positions == "bare" else layer
            for layer, positions in zip(described.layers, self.key_positions, strict=True)
        )
        return replace(described, layers=layers)

    @property
    def vocabulary(self) -> int:
        """How many token ids it knows."""
        return int(self.backbone.config.vocab_size)

    @property
    def dtype(self) -> torch.dtype:
        """Element type of its cache."""
        return self.backbone.model.dtype

    @property
    def device(self) -> torch.device:
        """Where it computes; of a model over several devices, where it takes its tokens."""
        return self.backbone.device

    @property
    def layer_devices(self) -> tuple[torch.device, ...]:
        """Where each layer computes, and has its keys and values."""
        return self.backbone.layer_devices

    @cached_property
    def max_positions(self) -> int:
        """Number of positions its context holds before rotary frequencies change, if they do."""
        geometry = self.backbone.geometry
        ropes = map(self.backbone.rotary, geometry.ropes)
        return positions_held(self.backbone.config, geometry.max_positions, ropes)

    def rotary(self, name: str | None) -> Rotary:
        """The rotary embedding of a name in its geometry; of None, one that turns nothing."""
        if name is None:
            return Rotary(torch.zeros(1, device=self.device))
        rotary = self.backbone.rotary(name)
        if rotary is None:
            raise unable(
                "it has no rotary embedding, so nothing moves its keys",
                "let the message come first in the receiver's context, or use a text channel",
            )
        return replace(rotary, interleaved="interleaved" in self.key_positions)

    def tensor(self, ids: Sequence[int]) -> Tensor:
        """Token ids as an int64 tensor on the model's device."""
        return numbers_at(ids, self.device)

    def embed(self, ids: Tensor) -> Tensor:
        """Input of layer 0 for `ids`, shape (tokens, hidden_size), scaled as the model does."""
        return self.backbone.embed(ids)

    @torch.no_grad()
    def prefill(
        self,
        ids: Tensor,
        state: Sequence[KVState] = (),
        positions: Tensor | None = None,
        capture: Collection[int] = (),
    ) -> Prefill:
        """Compute `ids` over states; see `unspoken.channels.CausalModel.prefill`."""
        end = max((piece.stop for piece in state), default=0)
        wanted = list(range(end, end + len(ids))) if positions is None else positions.tolist()
        cache = self.open(state, wanted, spare=0)
        hidden: Capture = {layer: [] for layer in capture}
        logits = self._passes(ids, wanted, cache, hidden)
        if logits is None:
            raise StateError("no tokens to compute", expected="at least one")
        inputs = {layer: torch.cat(parts) for layer, parts in hidden.items()}
        return Prefill(cache.snapshot(), logits[-1], inputs)

    def open(
        self,
        state: Sequence[KVState],
        positions: Sequence[int],
        *,
        spare: int,
        layers: slice = slice(None),
    ) -> ContextCache:
        """A cache with `state` in place, and room for `positions` and `spare` more.

        Args:
            state: States to place.
            positions: Positions that are to be computed, ascending.
            spare: Rows to allocate beyond them.
            layers: The layers whose states are placed.

        Raises:
            StateError: A gap, or rows missing that a new token must see.
            GeometryMismatch, IdentityMismatch: A state that is not this model's.
            ModelSupportError: A model whose contexts cannot be continued over states.
        """
        self._recognise(wait=True)
        self.check_states()
        make = self.backbone.cache_class
        return open_cache(self, state, positions, spare=spare, layers=layers, make=make)

    def _passes(
        self, ids: Tensor, positions: Sequence[int], cache: ContextCache, hidden: Capture
    ) -> Tensor | None:
        """Compute `ids` at ascending `positions`, at most `CHUNK` a pass; the last's logits."""
        logits: Tensor | None = None
        for start in range(0, len(positions), CHUNK):
            part = positions[start : start + CHUNK]
            keep = 1 if part[-1] == positions[-1] else 0
            logits = self._pass(ids[start : start + CHUNK], part, cache, keep, hidden)
        return logits

    def _pass(
        self,
        ids: Tensor,
        positions: Sequence[int],
        cache: ContextCache,
        keep: int,
        hidden: Capture | None,
    ) -> Tensor | None:
        if positions[0] == cache.length:
            return self.backbone.forward(ids, cache, keep=keep, capture=hidden)
        if self.refuses_fills is not None:
            raise unable(self.refuses_fills, "let the message come first in the context")
        where = self.tensor(positions)
        last = positions[-1]
        return self.backbone.fill(ids, where, last, cache, keep=keep, capture=hidden)

    @property
    def batch_key(self) -> object:
        """Equal for models whose turns may be computed in one forward."""
        return self.backbone

    def begin(self, states: Sequence[KVState], positions: Sequence[int], *, spare: int) -> Rows:
        """The rows of a turn: `states` in place, room for `positions` and `spare` more.

        Raises:
            StateError: A gap, or rows missing that a new token must see.
            GeometryMismatch, IdentityMismatch: A state that is not this model's.
            ModelSupportError: A model whose contexts cannot be continued over states.
        """
        if self.refuses_batches is not None:
            return self.open(states, positions, spare=spare)
        self._recognise(wait=True)
        self.check_states()
        self._path()  # is found before anything waits for the first step
        with self.backbone.computing():  # the buffer may move
            return open_sequence(
                states,
                positions,
                spare=spare,
                identity=self.identity,
                geometry=self.geometry,
                dtype=self.dtype,
                device=self.device,
                pool=self.backbone.tails,
            )

    def compute(self, segments: Sequence[Segment]) -> list[Tensor | None]:
        """Compute new tokens of several turns, in one forward where the model can.

        Args:
            segments: One a turn; their rows are of `begin`.

        Returns:
            Per segment, the logits after the tokens that want some, (tokens, vocabulary), or None.
        """
        if self.refuses_batches is None:
            return self._together(segments)
        if len(segments) > 1 and not self.refuses_steps and all(one.steps for one in segments):
            ids = self.tensor([one.ids[0] for one in segments])
            caches = [cast(ContextCache, one.rows) for one in segments]
            return [row[None] for row in stacked_step(self.backbone, caches, ids)]
        return [
            self._pass(
                self.tensor(one.ids),
                one.positions,
                cast(ContextCache, one.rows),
                one.wanted,
                one.capture,
            )
            for one in segments
        ]

    def _together(self, segments: Sequence[Segment]) -> list[Tensor | None]:
        batch, logits = packed_forward(self.backbone, segments, self._path())
        parts: dict[int, Tensor] = {}
        start = 0
        for segment in batch.segments:
            if logits is not None and segment.wanted:
                parts[id(segment)] = logits[start : start + segment.wanted]
                start += segment.wanted
        return [parts.get(id(segment)) for segment in segments]

    def _path(self) -> FastPath | None:
        return self.fast_path if isinstance(self.fast_path, FastPath) else None

    @torch.no_grad()
    def run_layers(
        self,
        hidden: Tensor,
        first: int,
        last: int,
        positions: Tensor,
        state: Sequence[KVState] = (),
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Run layers first … last - 1; see `unspoken.channels.CausalModel.run_layers`."""
        if self.refuses_layers is not None:
            raise unable(self.refuses_layers, "leave recomputation out, or use a text channel")
        start = int(positions[0])
        stop = start + hidden.shape[0]
        cache = self.open(state, range(start, stop), spare=0, layers=slice(first, last))
        output = self.backbone.run_layers(hidden, first, last, positions, start, cache)
        layers = tuple(
            LayerState(rows.keys[0, :, start:stop], rows.values[0, :, start:stop], start)
            for rows in cache.rows[first:last]
        )
        return output, layers

    @torch.no_grad()
    def read(self, ids: Sequence[int], capture: Collection[int] = ()) -> KVState:
        """State of a context of its own, without the logits that `prefill` would compute after it.

        Args:
            ids: The context.
            capture: Layers whose inputs the state is to keep (the E-cache).
        """
        cache = self.open((), range(len(ids)), spare=0)
        hidden: Capture = {layer: [] for layer in capture}
        for start in range(0, len(ids), CHUNK):
            part = self.tensor(ids[start : start + CHUNK])
            self.backbone.forward(part, cache, keep=0, capture=hidden)
        state = cache.snapshot()
        return replace(state, hidden={layer: torch.cat(parts) for layer, parts in hidden.items()})

    def logits(
        self,
        ids: Tensor,
        state: Sequence[KVState] = (),
        *,
        last: int | None = None,
        grad: bool = False,
    ) -> Tensor:
        """Logits after the last of `ids`; see `unspoken.channels.CausalModel.logits`."""
        end = max((piece.stop for piece in state), default=0)
        with torch.set_grad_enabled(grad):
            cache = self.open(state, range(end, end + len(ids)), spare=0)
            logits = self.backbone.forward(ids, cache, keep=last or len(ids))
        if logits is None:
            raise StateError("no tokens to compute", expected="at least one")
        if grad and self.refuses_gradients is not None:
            raise unable(self.refuses_gradients, "train the bridge into the model that it was of")
        return logits

    def branch_logits(
        self,
        branches: Sequence[Tensor],
        last: Sequence[int],
        state: Sequence[KVState] = (),
        *,
        grad: bool = False,
    ) -> list[Tensor]:
        """Logits of several continuations; see `unspoken.channels.model.Branching`."""
        unable_to = self.refuses_fills or (grad and self.refuses_gradients)
        if unable_to or not self.geometry.plain:
            each = zip(branches, last, strict=True)
            return [self.logits(ids, state, last=count, grad=grad) for ids, count in each]
        end = max((piece.stop for piece in state), default=0)
        with torch.set_grad_enabled(grad):
            cache = self.open(state, range(end, end + sum(map(len, branches))), spare=0)
            return branch_logits(self.backbone, branches, last, cache)
