"""A decoder of transformers, reached into layer by layer: its masks, its hooks and its layers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from inspect import signature
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from unspoken.agents.models.caches.calls import DecoderCalls
from unspoken.agents.models.checkpoints.quantised import rounds_inputs
from unspoken.agents.models.decoders.masks import additive, causal_layers, masked, seen_rows
from unspoken.agents.models.decoders.parts import rotary_module, table_frequencies, text_decoder
from unspoken.agents.models.fast_path.guard import looking
from unspoken.agents.models.hf_cache import ContextCache, cache_class
from unspoken.agents.models.hf_geometry import layer_types, read_geometry, rope_per_type
from unspoken.agents.models.linears.int8 import has_int8
from unspoken.agents.models.linears.packed import computing, pack_linears
from unspoken.agents.models.ragged.reading import read_singly, reads_singly
from unspoken.agents.models.ragged.tails import TailPool
from unspoken.agents.models.watch import Watch
from unspoken.agents.models.weights import weights_of
from unspoken.channels.errors import ModelSupportError
from unspoken.channels.kv.rope import Rotary

Capture = dict[int, list[Tensor]]
"""Layers whose inputs are wanted; each forward appends (tokens, hidden_size)."""

_ALL = slice(None)
_DYNAMIC_ROPE = {"dynamic", "longrope"}


_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
_COARSE = 0.1
"""The same in other types."""


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
        self._takes: dict[nn.Module, frozenset[str]] = {}
        self.base, self.layers = text_decoder(model)
        self.config: PreTrainedConfig = model.config.get_text_config()
        if self.config._attn_implementation not in ("eager", "sdpa", None):
            raise ModelSupportError(
                f"the model computes attention with {self.config._attn_implementation}",
                expected="sdpa or eager, which take a mask per position",
                fix="load it with attn_implementation='sdpa'",
            )
        self.calls = DecoderCalls(model, self.base)
        self.cache_class = cache_class(self.calls.own_cache)
        with self.weights.lock:
            self.geometry = read_geometry(self.calls, self.base, self.config)
        self.kinds = layer_types(self.config)
        self.chunk: int | None = getattr(self.config, "attention_chunk_size", None)
        self.tails = TailPool(self.geometry)
        self.rotary_module = rotary_module(self.base, self.layers)
        self.per_type = rope_per_type(self.config)
        # Of a model with recurrent layers: whether it reads on one token at a time alone.
        self.reads_singly = False
        if self.geometry.recurrent and self.device.type != "meta":  # which computes no logits
            self.reads_singly = reads_singly(self)
        head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if head is not None:
            self.weights.hook_head(head, _unsliced)
        with self.weights.lock:
            self.linears = pack_linears(model)

    @property
    def device(self) -> torch.device:
        """Where the weights are, or the first of them."""
        return self.model.device

    @property
    def layer_devices(self) -> tuple[torch.device, ...]:
        """Where each layer's weights are."""
        return tuple(next(layer.parameters()).device for layer in self.layers)

    @property
    def rounding(self) -> float:
        """Most that values computed in two ways differ by, as a share of their spread."""
        # Weights of one byte multiply few tokens otherwise than many.
        if has_int8(self.model) or rounds_inputs(self.model):
            return _COARSE
        return _ROUNDING.get(self.model.dtype, _COARSE)

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

    def rotary(self, name: str) -> Rotary | None:
        """The rotary embedding of a name in the geometry; None for a model that has none."""
        module = self.rotary_module
        if module is None:
            frequencies = table_frequencies(self.config, self.device)
            return None if frequencies is None else Rotary(frequencies)
        prefix = f"{name}_" if self.per_type else ""
        kind = getattr(module, "rope_type", "default")
        kind = kind.get(name) if isinstance(kind, dict) else kind
        frequencies = getattr(module, f"{prefix}inv_freq", None)
        if frequencies is None:
            return None
        return Rotary(
            frequencies.float(),
            float(getattr(module, f"{prefix}attention_scaling", 1.0)),
            dynamic=kind in _DYNAMIC_ROPE,
        )

    def masks(self, positions: Tensor, length: int) -> list[Tensor]:
        """What tokens at `positions` see of all rows, by layer, bool (1, 1, tokens, length)."""
        return seen_rows(self.kinds, self.geometry, positions, length, self.chunk)

    def _masks_of_run(self, positions: Tensor, start: int, stop: int) -> list[Tensor | None]:
        """Masks by layer of tokens from `start` on; None where causal attention will do.

        Without a mask attention takes the quicker of its paths, which repeats no keys and values.
        """
        eager = self.config._attn_implementation == "eager"
        plain = [False] * len(self.kinds)
        if start == 0 and not eager:
            plain = causal_layers(self.kinds, self.geometry, stop, self.chunk)
            if all(plain):
                return [None] * len(self.kinds)
        masks = self.masks(positions, stop)
        masks = [additive(mask, self.model.dtype) for mask in masks] if eager else masks
        return [None if causal else mask for causal, mask in zip(plain, masks, strict=True)]

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
        if self.reads_singly and start and len(ids) > 1:
            return read_singly(self, ids, cache, keep, capture)
        stop = start + ids.shape[0]
        positions = torch.arange(start, stop, device=ids.device)
        with self.computing(), self.captured(capture):
            logits = self._run(ids, positions, cache, keep)
            if not self.geometry.plain:
                cache.filled(stop, ids.new_empty(0, dtype=self.model.dtype))
        return logits

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
        eager = self.config._attn_implementation == "eager"
        with (
            self.computing(),
            self.captured(capture),
            self._scattered(cache, positions, last),
            masked(self.layers, masks, eager=eager, dtype=self.model.dtype),
        ):
            return self._run(ids, positions, cache, keep)

    def _run(self, ids: Tensor, positions: Tensor, cache: ContextCache, keep: int) -> Tensor | None:
        inputs = self.calls.inputs(ids, positions, cache)
        if not keep:
            self.read(inputs)
            return None
        return self.logits(inputs | {"logits_to_keep": keep})[-keep:]

    def read(self, inputs: Mapping[str, Any]) -> None:
        """Compute tokens without the vocabulary's product; of the inputs what the decoder takes."""
        self.base(**self._known(self.base, inputs))

    def logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """Logits of tokens, (tokens, vocabulary); of the inputs what the model takes."""
        logits: Tensor = self.model(**self._known(self.model, inputs)).logits
        return logits[0]

    def next_logits(self, inputs: Mapping[str, Any]) -> Tensor:
        """Logits after the last token of each row, (rows, vocabulary)."""
        logits: Tensor = self.model(**self._known(self.model, inputs)).logits
        return logits[:, -1]

    def _known(self, module: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if module not in self._takes:
            self._takes[module] = frozenset(signature(module.forward).parameters)
        takes = self._takes[module]
        return {name: value for name, value in inputs.items() if name in takes}

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

        return looking(keep)

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
        with self.computing(), self._scattered(cache, positions, stop - 1, slice(first, last)):
            ropes = self.position_embeddings(states, positions[None])
            for index in range(first, last):
                inputs = {
                    "attention_mask": masks[index],
                    "position_ids": positions[None],
                    "past_key_values": cache,
                    "layer_past": cache,
                    "use_cache": True,
                    "position_embeddings": ropes[self.kinds[index]],
                }
                layer = self.layers[index]
                output = layer(states, **self._known(layer, inputs))
                states = output[0] if isinstance(output, tuple) else output
        return states[0]

    def position_embeddings(self, states: Tensor, positions: Tensor) -> dict[str, Any]:
        """What layers of each kind are given of positions (1, tokens), for states like these."""
        rotate: Any = getattr(self.base, "rotary_emb", None)
        if not isinstance(rotate, nn.Module):  # its layers rotate by themselves, or nothing does
            return dict.fromkeys(self.kinds)
        if self.per_type:
            return {kind: rotate(states, positions, kind) for kind in set(self.kinds)}
        return dict.fromkeys(self.kinds, rotate(states, positions))


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
