"""The only file that touches transformers' caches, masks and decoder layers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from unspoken.channels.errors import ModelSupportError, StateError
from unspoken.channels.geometry import CacheGeometry, LayerGeometry, ModelIdentity
from unspoken.channels.rope import Rotary
from unspoken.channels.state import KVState, LayerState

__all__ = [
    "Backbone",
    "Capture",
    "ContextCache",
    "first_approximate",
    "first_gap",
    "read_geometry",
]

Capture = dict[int, list[Tensor]]
"""Layers whose inputs are wanted; each forward appends (tokens, hidden_size)."""

_SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}
_ALL = slice(None)
_DYNAMIC_ROPE = {"dynamic", "longrope"}


def _layer_types(config: PreTrainedConfig) -> list[str]:
    """The attention type of every layer, by the names transformers uses."""
    types = getattr(config, "layer_types", None)
    if types:
        return list(types)
    window = getattr(config, "sliding_window", None)
    kind = (
        "sliding_attention"
        if window and getattr(config, "use_sliding_window", True)
        else "full_attention"
    )
    return [kind] * int(config.num_hidden_layers)


def read_geometry(config: PreTrainedConfig) -> CacheGeometry:
    """The cache geometry of a transformers configuration.

    Raises:
        ModelSupportError: Layers whose cache is not plain keys and values per position.
    """
    types = _layer_types(config)
    odd = sorted(set(types) - _SUPPORTED_LAYERS)
    for attribute in ("kv_lora_rank", "num_kv_shared_layers"):
        if getattr(config, attribute, None):
            odd.append(attribute)
    if odd:
        raise ModelSupportError(
            f"a {config.model_type} model has {', '.join(odd)}, which leaves no plain keys and values to hand over",
            expected="a decoder with full or sliding attention in every layer",
            fix="use another model",
        )
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    per_type = _rope_per_type(config)
    layers = tuple(
        LayerGeometry(
            kv_heads,
            head_dim,
            rope=kind if per_type else "default",
            window=int(config.sliding_window) if kind == "sliding_attention" else None,
        )
        for kind in types
    )
    return CacheGeometry(layers, int(config.hidden_size), int(config.max_position_embeddings))


def _rope_per_type(config: PreTrainedConfig) -> bool:
    parameters = getattr(config, "rope_parameters", None) or {}
    return bool(parameters) and set(parameters) <= _SUPPORTED_LAYERS


class _Rows(CacheLayerMixin):  # type: ignore[no-untyped-call]  # its base has no types
    """One layer's buffer: written in place, grown by half when full, every row kept until a snapshot is trimmed."""

    keys: Tensor
    values: Tensor

    def __init__(self, shape: LayerGeometry, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shape, self.window, self.capacity = shape, shape.window, capacity
        self.is_sliding = shape.window is not None
        self.length = 0
        self.first = 0
        self.scatter: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        heads, size = self.shape.kv_heads, self.shape.head_dim
        self.keys = key_states.new_zeros(1, heads, self.capacity, size)
        self.values = value_states.new_zeros(1, heads, self.capacity, size)
        self.is_initialized = True

    def reserve(self, rows: int, like: Tensor) -> None:
        """Make room for `rows` rows in all, of the dtype and on the device of `like`."""
        if not self.is_initialized:
            self.capacity = max(self.capacity, rows)
            self.lazy_initialization(like, like)
        if rows <= self.capacity:
            return
        self.capacity = max(rows, self.capacity + self.capacity // 2)
        keys, values = self.keys, self.values
        self.lazy_initialization(keys, values)
        self.keys[:, :, : self.length] = keys[:, :, : self.length]
        self.values[:, :, : self.length] = values[:, :, : self.length]

    def place(self, layer: LayerState, start: int) -> None:
        """Copy a state's rows to their positions; rows a trimmed state lacks stay zero."""
        stop = layer.first + layer.rows
        self.reserve(stop, layer.keys)
        self.keys[0, :, layer.first : stop] = layer.keys
        self.values[0, :, layer.first : stop] = layer.values
        if layer.first > start:
            self.first = max(self.first, layer.first)
        self.length = max(self.length, stop)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.scatter is not None:
            self.keys.index_copy_(2, self.scatter, key_states)
            self.values.index_copy_(2, self.scatter, value_states)
            return self.keys[:, :, : self.length], self.values[:, :, : self.length]
        stop = self.length + key_states.shape[2]
        first = self.visible_from()
        self.reserve(stop, key_states)
        self.keys[:, :, self.length : stop] = key_states
        self.values[:, :, self.length : stop] = value_states
        self.length = stop
        return self.keys[:, :, first:stop], self.values[:, :, first:stop]

    def visible_from(self) -> int:
        """First position the next token sees."""
        return 0 if self.window is None else max(self.length - self.window + 1, 0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        first = self.visible_from()
        return self.length + query_length - first, first

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


class ContextCache(Cache):
    """The growing cache of one turn. It belongs to that turn alone; `snapshot` gives out states that never change.

    Rows below a snapshot's end are never written again, so snapshots are views and cost nothing.

    Args:
        geometry: Geometry of the model.
        capacity: Rows to allocate at first.

    Attributes:
        approximate_from: First position whose rows are taken over as approximate; None for none.
    """

    def __init__(self, geometry: CacheGeometry, capacity: int) -> None:
        self.rows = [_Rows(layer, capacity) for layer in geometry.layers]
        self.approximate_from: int | None = None
        super().__init__(layers=list(self.rows))

    @property
    def length(self) -> int:
        """Number of positions filled."""
        return self.rows[0].length

    def place(self, state: KVState, layers: slice = _ALL) -> None:
        """Copy a state to its positions, all layers or some."""
        for rows, layer in zip(self.rows[layers], state.layers[layers], strict=True):
            rows.place(layer, state.start)

    def scatter(self, positions: Tensor | None, stop: int, layers: slice) -> None:
        """Send the next update of some layers to `positions` rather than to the end (None: to the end again)."""
        for rows in self.rows[layers]:
            rows.scatter = positions
            if positions is not None:
                rows.length = max(rows.length, stop)

    def reserve(self, stop: int, like: Tensor, layers: slice) -> None:
        """Make room for positions 0 … stop - 1 in some layers."""
        for rows in self.rows[layers]:
            rows.reserve(stop, like)

    def truncate(self, stop: int) -> None:
        """Forget positions from `stop` on; only before any of them was given out in a snapshot."""
        for rows in self.rows:
            rows.length = min(rows.length, stop)

    def check_window(self, position: int) -> None:
        """Refuse to compute a token that must see rows which a trimmed state lacks."""
        for number, rows in enumerate(self.rows):
            oldest = 0 if rows.window is None else max(position - rows.window + 1, 0)
            if rows.first > oldest:
                raise StateError(
                    f"layer {number} holds nothing before position {rows.first}",
                    expected=f"rows from position {oldest} on, which the token at {position} sees",
                    fix="do not trim a state that a splice or a repair will read",
                )

    def snapshot(self, identity: ModelIdentity, stop: int | None = None) -> KVState:
        """The state of positions 0 … stop - 1 as views of the buffers."""
        stop = self.length if stop is None else stop
        layers = []
        for rows in self.rows:
            first = min(rows.first, stop)
            layers.append(
                LayerState(rows.keys[0, :, first:stop], rows.values[0, :, first:stop], first)
            )
        rough = self.approximate_from
        return KVState(
            tuple(layers), 0, stop, identity, rough if rough is not None and rough < stop else None
        )


class Backbone:
    """A transformers decoder, reached into layer by layer.

    Args:
        model: A causal language model in evaluation mode.

    Attributes:
        activate: Called before anything is computed; turns the right adapter of a shared model on.

    Raises:
        ModelSupportError: A decoder whose parts are not where transformers puts them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.activate: Callable[[], None] = lambda: None
        self.base: nn.Module = model.base_model
        self.config: PreTrainedConfig = model.config.get_text_config()
        if self.config._attn_implementation not in ("eager", "sdpa", None):
            raise ModelSupportError(
                f"the model computes attention with {self.config._attn_implementation}",
                expected="sdpa or eager, which take a mask per position",
                fix="load it with attn_implementation='sdpa'",
            )
        self.geometry = read_geometry(self.config)
        self.kinds = _layer_types(self.config)
        self.layers: nn.ModuleList = self._part("layers", "h")
        self.rotary_module: nn.Module = self._part("rotary_emb")
        self.per_type = _rope_per_type(self.config)
        head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if head is not None:
            head.register_forward_pre_hook(_unsliced)

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
        """Where the weights are."""
        return self.model.device

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
        """Masks per layer type for queries at `positions` over rows 0 … length - 1, shape (1, 1, tokens, length)."""
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
        """Masks per layer type for tokens that begin at `start`; None where plain causal attention says the same.

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
        cache.reserve(last + 1, next(self.base.parameters()), layers)
        cache.scatter(positions, last + 1, layers)
        try:
            yield
        finally:
            cache.scatter(None, 0, layers)

    def forward(
        self,
        ids: Tensor,
        cache: ContextCache,
        *,
        keep: int = 1,
        capture: Capture | None = None,
    ) -> Tensor | None:
        """Append `ids` (tokens,) to a cache without holes; logits after the last `keep` of them (0: none at all)."""
        start = cache.length
        positions = torch.arange(start, start + ids.shape[0], device=ids.device)
        with self._captured(capture):
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
        """Compute `ids` at ascending `positions`, the last of which is `last`, between and after rows at hand."""
        masks = self.masks(positions, max(last + 1, cache.length))
        mixed = len(masks) > 1 or self.per_type
        mask: Any = (
            masks
            if mixed or getattr(self.config, "layer_types", None)
            else next(iter(masks.values()))
        )
        with self._captured(capture), self._scattered(cache, positions, last):
            return self._run(ids, positions, cache, mask, keep)

    def _run(
        self, ids: Tensor, positions: Tensor, cache: ContextCache, mask: Any, keep: int
    ) -> Tensor | None:
        self.activate()
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
    def _captured(self, wanted: Capture | None) -> Iterator[None]:
        """Append the input of every layer in `wanted` to its list there while the block runs."""
        handles = [
            self.layers[layer].register_forward_pre_hook(_keep_input(kept), with_kwargs=True)
            for layer, kept in (wanted or {}).items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def embed(self, ids: Tensor) -> Tensor:
        """The input of layer 0 for `ids`, (tokens, hidden_size), taken where the layer takes it."""
        self.activate()
        wanted: Capture = {0: []}
        with self._captured(wanted), _stopping_at(self.layers[0]), suppress(_Stop):
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
        self.activate()
        stop = start + hidden.shape[0]
        states = hidden[None]
        masks = self._masks_of_run(positions, start, stop)
        ropes = self._position_embeddings(states, positions[None])
        parameters = signature(self.layers[first].forward).parameters
        past: dict[str, Any] = {
            "layer_past" if "layer_past" in parameters else "past_key_values": cache
        }
        with self._scattered(cache, positions, stop - 1, slice(first, last)):
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


def _keep_input(kept: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        kept.append((args[0] if args else kwargs["hidden_states"])[0])

    return keep


def _unsliced(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give the vocabulary's product a tensor of its own.

    A slice of the hidden states has the strides of the whole; `torch.matmul` then expands and copies the head's
    weights, seconds where the vocabulary is large.
    """
    return tuple(
        part.clone(memory_format=torch.contiguous_format) if isinstance(part, Tensor) else part
        for part in args
    )


def first_gap(states: Sequence[KVState], new: Sequence[int], stop: int) -> int | None:
    """The first position below `stop` that neither a state nor a new token covers."""
    covered = bytearray(stop)
    for state in states:
        covered[state.start : state.stop] = b"\1" * len(state)
    for position in new:
        covered[position] = 1
    gap = covered.find(0)
    return None if gap < 0 else gap


def first_approximate(states: Sequence[KVState], new: Sequence[int]) -> int | None:
    """The first position whose rows are approximate and not computed anew, or None."""
    anew = set(new)
    rough = [
        next((p for p in range(state.approximate_from, state.stop) if p not in anew), None)
        for state in states
        if state.approximate_from is not None
    ]
    return min((position for position in rough if position is not None), default=None)
