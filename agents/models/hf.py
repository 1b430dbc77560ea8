"""A decoder of transformers, reached into layer by layer: its masks, its hooks and its layers."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from inspect import signature
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from unspoken.agents.models.hf_cache import ContextCache
from unspoken.agents.models.hf_geometry import layer_types, read_geometry, rope_per_type
from unspoken.agents.models.linears.packed import computing, pack_linears
from unspoken.agents.models.ragged.tails import TailPool
from unspoken.agents.models.watch import Watch
from unspoken.agents.models.weights import weights_of
from unspoken.channels.errors import ModelSupportError
from unspoken.channels.kv.rope import Rotary

Capture = dict[int, list[Tensor]]
"""Layers whose inputs are wanted; each forward appends (tokens, hidden_size)."""

_ALL = slice(None)
_DYNAMIC_ROPE = {"dynamic", "longrope"}


class Backbone:
    """A transformers decoder, reached into layer by layer.

    Args:
        model: A causal language model in evaluation mode.

    Attributes:
        weights: The weights it computes on, perhaps shared with other models.
        linears: How its linear layers are computed.
        tails: The rows that its turns have of their own.

    Raises:
        ModelSupportError: A decoder whose parts are not where transformers puts them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.weights = weights_of(model)
        self._watch = Watch(model)
        self._looked = 0
        self._wanted: Capture = {}
        self._hooked: set[int] = set()
        self.base: nn.Module = model.base_model
        self.config: PreTrainedConfig = model.config.get_text_config()
        if self.config._attn_implementation not in ("eager", "sdpa", None):
            raise ModelSupportError(
                f"the model computes attention with {self.config._attn_implementation}",
                expected="sdpa or eager, which take a mask per position",
                fix="load it with attn_implementation='sdpa'",
            )
        self.geometry = read_geometry(self.config)
        self.kinds = layer_types(self.config)
        self.tails = TailPool(self.geometry)
        self.layers: nn.ModuleList = self._part("layers", "h")
        self.rotary_module: nn.Module = self._part("rotary_emb")
        self.per_type = rope_per_type(self.config)
        head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if head is not None:
            self.weights.hook_head(head, _unsliced)
        with self.weights.lock:
            self.linears = pack_linears(model)

    def _part(self, *names: str) -> Any:
        for name in names:
            if hasattr(self.base, name):
                return getattr(self.base, name)
        raise ModelSupportError(
            f"a {self.config.model_type} model has no {' or '.join(names)} on its decoder",
            expected="a decoder-only transformer with rotary position embeddings",
            fix="use another model",
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are, or the first of them."""
        return self.model.device

    @property
    def layer_devices(self) -> tuple[torch.device, ...]:
        """Where each layer's weights are."""
        return tuple(next(layer.parameters()).device for layer in self.layers)

    def computing(self) -> AbstractContextManager[object]:
        """The weights to oneself for one operation, hooks and masks included."""
        if self.model.training:  # a program that trained it left dropout on
            self.model.eval()  # type: ignore[no-untyped-call]
        return computing(self.weights.lock)

    def generation(self, *, wait: bool = False) -> int:
        """How many times a program was found to have changed the model from outside.

        Args:
            wait: Whether to wait for one who computes. Else the last answer counts meanwhile.
        """
        if not self.weights.lock.acquire(blocking=wait):
            return self._watch.generation
        try:
            operation = self.weights.operation
            if operation and operation == self._looked:
                return self._watch.generation
            self._looked, before = operation, self._watch.generation
            if self._watch.check() != before:
                self.linears = pack_linears(self.model, anew=True)
            return self._watch.generation
        finally:
            self.weights.lock.release()

    def rotary(self, name: str) -> Rotary:
        """The rotary embedding of a name in the geometry."""
        prefix = f"{name}_" if self.per_type else ""
        kind = getattr(self.rotary_module, "rope_type", "default")
        kind = kind[name] if isinstance(kind, dict) else kind
        return Rotary(
            getattr(self.rotary_module, f"{prefix}inv_freq").float(),
            float(getattr(self.rotary_module, f"{prefix}attention_scaling", 1.0)),
            dynamic=kind in _DYNAMIC_ROPE,
        )

    def masks(self, positions: Tensor, length: int) -> dict[str, Tensor]:
        """Masks per layer type, (1, 1, tokens, length), of queries at `positions` over all rows."""
        rows = torch.arange(length, device=positions.device)
        seen = rows[None, :] <= positions[:, None]
        masks = {}
        for kind, layer in zip(self.kinds, self.geometry.layers, strict=True):
            if kind not in masks:
                near = (
                    seen
                    if layer.window is None
                    else seen & (rows[None, :] > positions[:, None] - layer.window)
                )
                masks[kind] = self._as_mask(near[None, None])
        return masks

    def _masks_of_run(self, positions: Tensor, start: int, stop: int) -> dict[str, Tensor | None]:
        """Masks per layer type of tokens from `start` on; None where causal attention will do.

        Without a mask attention takes the quicker of its paths, which repeats no keys and values.
        """
        windows = {
            kind: layer.window for kind, layer in zip(self.kinds, self.geometry.layers, strict=True)
        }
        causal = start == 0 and self.config._attn_implementation != "eager"
        plain = {
            kind
            for kind, window in windows.items()
            if causal and (window is None or window >= stop)
        }
        if plain == set(windows):
            return dict.fromkeys(windows)
        masks = self.masks(positions, stop)
        return {kind: None if kind in plain else mask for kind, mask in masks.items()}

    def _as_mask(self, allowed: Tensor) -> Tensor:
        if self.config._attn_implementation != "eager":
            return allowed
        dtype = self.model.dtype
        lowest = torch.finfo(dtype).min
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, lowest)

    @contextmanager
    def _scattered(
        self, cache: ContextCache, positions: Tensor, last: int, layers: slice = _ALL
    ) -> Iterator[None]:
        like = next(self.base.parameters())
        likes = [like.new_empty(0, device=device) for device in self.layer_devices[layers]]
        cache.reserve(last + 1, likes, layers)
        cache.scatter(positions, last + 1, layers)
        try:
            yield
        finally:
            cache.scatter(None, 0, layers)

    def forward(
        self, ids: Tensor, cache: ContextCache, *, keep: int = 1, capture: Capture | None = None
    ) -> Tensor | None:
        """Append `ids` to a cache without holes; logits after the last `keep`, None for none."""
        start = cache.length
        positions = torch.arange(start, start + ids.shape[0], device=ids.device)
        with self.computing(), self.captured(capture):
            return self._run(ids, positions, cache, None, keep)

    def fill(
        self,
        ids: Tensor,
        positions: Tensor,
        last: int,
        cache: ContextCache,
        *,
        keep: int = 1,
        capture: Capture | None = None,
    ) -> Tensor | None:
        """Compute `ids` at ascending `positions` up to `last`, between and after rows at hand."""
        masks = self.masks(positions, max(last + 1, cache.length))
        mixed = len(masks) > 1 or self.per_type
        mask: Any = (
            masks
            if mixed or getattr(self.config, "layer_types", None)
            else next(iter(masks.values()))
        )
        with self.computing(), self.captured(capture), self._scattered(cache, positions, last):
            return self._run(ids, positions, cache, mask, keep)

    def _run(
        self, ids: Tensor, positions: Tensor, cache: ContextCache, mask: Any, keep: int
    ) -> Tensor | None:
        inputs = {
            "input_ids": ids[None],
            "position_ids": positions[None],
            "attention_mask": mask,
            "past_key_values": cache,
            "use_cache": True,
        }
        if not keep:
            self.base(**inputs)
            return None
        logits: Tensor = self.model(**inputs, logits_to_keep=keep).logits[0]
        return logits

    @contextmanager
    def captured(self, wanted: Capture | None) -> Iterator[None]:
        """Append the input of every layer in `wanted` to its list there while the block runs.

        A layer keeps its hook from the first time on: hooks that come and go cost time, and a graph
        that was captured would not have them.
        """
        for layer in wanted or ():
            if layer not in self._hooked:
                self._hooked.add(layer)
                self.layers[layer].register_forward_pre_hook(self._keep(layer), with_kwargs=True)
        before, self._wanted = self._wanted, wanted or {}
        try:
            yield
        finally:
            self._wanted = before

    def _keep(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        """The hook of a layer; it knows the backbone by a weak reference, as its model may go."""
        backbone = ref(self)

        def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
            current = backbone()
            # A copy of the model has copies of the hooks, and captures for nobody.
            mine = current is not None and current.layers[layer] is module
            if current is not None and mine and layer in current._wanted:
                hidden = args[0] if args else kwargs["hidden_states"]
                current._wanted[layer].append(hidden[0])

        return keep

    def embed(self, ids: Tensor) -> Tensor:
        """The input of layer 0 for `ids`, (tokens, hidden_size), taken where the layer takes it."""
        wanted: Capture = {0: []}
        with self.computing(), self.captured(wanted), _stopping_at(self.layers[0]), suppress(_Stop):
            self.base(input_ids=ids[None], use_cache=False)
        return wanted[0][0]

    def run_layers(
        self,
        hidden: Tensor,
        first: int,
        last: int,
        positions: Tensor,
        start: int,
        cache: ContextCache,
    ) -> Tensor:
        """Run layers first … last - 1 on their input at `positions` (contiguous from `start`)."""
        stop = start + hidden.shape[0]
        states = hidden[None]
        masks = self._masks_of_run(positions, start, stop)
        parameters = signature(self.layers[first].forward).parameters
        past: dict[str, Any] = {
            "layer_past" if "layer_past" in parameters else "past_key_values": cache
        }
        with self.computing(), self._scattered(cache, positions, stop - 1, slice(first, last)):
            ropes = self._position_embeddings(states, positions[None])
            for index in range(first, last):
                kind = self.kinds[index]
                output = self.layers[index](
                    states,
                    attention_mask=masks[kind],
                    position_ids=positions[None],
                    **past,
                    use_cache=True,
                    position_embeddings=ropes[kind],
                )
                states = output[0] if isinstance(output, tuple) else output
        return states[0]

    def _position_embeddings(self, states: Tensor, positions: Tensor) -> dict[str, Any]:
        if self.per_type:
            return {kind: self.rotary_module(states, positions, kind) for kind in set(self.kinds)}
        return dict.fromkeys(self.kinds, self.rotary_module(states, positions))


class _Stop(Exception):
    """Ends a forward pass once what was wanted of it is there."""


@contextmanager
def _stopping_at(layer: nn.Module) -> Iterator[None]:
    def stop(module: nn.Module, args: Any) -> None:
        raise _Stop

    handle = layer.register_forward_pre_hook(stop)
    try:
        yield
    finally:
        handle.remove()


def _unsliced(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give the vocabulary's product a tensor of its own.

    A slice of the hidden states has the strides of the whole; `torch.matmul` then expands and
    copies the head's weights, seconds where the vocabulary is large.
    """
    return tuple(
        part.clone(memory_format=torch.contiguous_format) if isinstance(part, Tensor) else part
        for part in args
    )
