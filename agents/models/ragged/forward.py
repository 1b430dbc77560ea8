"""One forward of transformers over packed segments, and the proof that a model can take it."""

from collections.abc import Iterator
from collections.abc import Sequence as Listed
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin

from unspoken.agents.models.fast_path.decoder import FastPath, Unknown, find_fast_path
from unspoken.agents.models.hf_cache import ContextCache
from unspoken.agents.models.ragged.attention import NAME, attend, current
from unspoken.agents.models.ragged.packed import Packed
from unspoken.agents.models.ragged.segment import Segment
from unspoken.agents.models.ragged.sequence import Sequence, open_sequence
from unspoken.agents.models.ragged.tails import TailPool
from unspoken.channels.kv.geometry import ModelIdentity
from unspoken.channels.kv.transfer import numbers_at

if TYPE_CHECKING:
    from unspoken.agents.models.hf import Backbone

_PROBED = 6
"""Tokens that a model is tried with."""


class _PackedCache(Cache):
    """What transformers writes keys and values into: the rows of a batch."""

    def __init__(self, batch: Packed) -> None:
        self.batch = batch
        super().__init__(layers=[_PackedLayer() for _ in batch.geometry.layers])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.batch.append(layer_idx, torch.cat((key_states[0], value_states[0])).transpose(0, 1))
        return key_states, value_states


class _PackedLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # its base has no types
    """What transformers asks a layer about its length; the batch knows better."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_sliding = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to make."""

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


@torch.no_grad()
def packed_forward(
    backbone: "Backbone", segments: Listed[Segment], path: FastPath | None = None
) -> tuple[Packed, Tensor | None]:
    """Compute segments of different sequences in one forward.

    Args:
        backbone: The model.
        segments: New tokens.
        path: The model's fast path, which is taken unless somebody changed the model meanwhile.

    Returns:
        The batch, and the logits after the tokens that want some, (tokens, vocabulary), in the
        batch's order; None where none does.
    """
    capture: dict[int, list[Tensor]] = {
        layer: [] for segment in segments for layer in segment.capture
    }
    with backbone.computing():
        for segment in segments:
            segment.sequence.reserve(segment.reach)
        batch = Packed(segments, backbone.geometry, backbone.device)
        if path is not None and path.is_as_before:
            logits = _run_fast(backbone, path, batch, capture)
        else:
            with _ragged(backbone.config), current(batch), backbone.captured(capture):
                logits = _run(backbone, batch)
    batch.filled()
    start = 0
    for segment in batch.segments:
        stop = start + len(segment.ids)
        for layer, kept in segment.capture.items():
            # A part would keep what all the others had computed.
            hidden = capture[layer][0][start:stop]
            kept.append(hidden if len(batch.segments) == 1 else hidden.clone())
        start = stop
    return batch, logits


def _run_fast(
    backbone: "Backbone", path: FastPath, batch: Packed, capture: dict[int, list[Tensor]]
) -> Tensor | None:
    def attention(layer: int, queries: Tensor, rows: Tensor) -> Tensor:
        batch.append(layer, rows)
        return attend(batch, layer, queries)

    given: Tensor = backbone.base.embed_tokens(batch.ids)  # type: ignore[operator]
    ropes = backbone.position_embeddings(given[None], batch.positions[None])
    hidden = path.hidden(given, path.rotations(ropes), attention, capture)
    wanted = batch.wanted()
    if not wanted:
        return None
    if len(wanted) < len(batch.ids):
        hidden = hidden.index_select(0, numbers_at(wanted, backbone.device))
    head: Any = backbone.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return path.capped(head(hidden))


def _run(backbone: "Backbone", batch: Packed) -> Tensor | None:
    inputs: dict[str, Any] = {
        "input_ids": batch.ids[None],
        "position_ids": batch.positions[None],
        "past_key_values": _PackedCache(batch),
        "use_cache": True,
    }
    wanted = batch.wanted()
    if not wanted:
        backbone.read(inputs)
        return None
    every = len(wanted) == len(batch.ids)
    keep = 0 if every else numbers_at(wanted, backbone.device)
    return backbone.logits(inputs | {"logits_to_keep": keep})


@contextmanager
def _ragged(config: PreTrainedConfig) -> Iterator[None]:
    """Transformers' attention is ours while the block runs; the weights are held."""
    before = config._attn_implementation_internal
    config._attn_implementation_internal = NAME
    try:
        yield
    finally:
        config._attn_implementation_internal = before


@torch.no_grad()
def refusal(backbone: "Backbone") -> str | None:
    """Why packed rows are not computed as alone; None where they are.

    Two sequences are computed together, one of them token by token at last, and compared with each
    alone. An architecture whose attention is its own shows here, whatever its name.
    """
    contexts = _contexts(backbone)
    try:
        with backbone.computing():
            alone = torch.stack([_alone(backbone, ids) for ids in contexts])
            batch, together = _together(backbone, contexts)
    except Exception as error:  # an architecture's own code may raise anything here
        return f"its attention cannot take packed rows: {type(error).__name__}"
    if batch.layers_seen != len(backbone.geometry.layers):
        return "its attention is its own"
    if batch.ignored:
        return f"its attention is given {', '.join(sorted(batch.ignored))}, which packed rows lack"
    apart = _apart(alone, together)
    if apart <= backbone.rounding:
        return None
    return f"packed rows are computed otherwise (by {apart:.1g} of the logits' spread)"


@torch.no_grad()
def prove_fast_path(backbone: "Backbone") -> FastPath | str:
    """A model's fast path, or why it has none.

    The batch of `refusal` is computed with and without it.
    """
    contexts = _contexts(backbone)
    try:
        path = find_fast_path(backbone)
        with backbone.computing():
            _, plain = _together(backbone, contexts)
            _, fast = _together(backbone, contexts, path)
    except Unknown as why:
        return str(why)
    except Exception as error:  # a model may lack whatever its kind has
        return f"its layers are of another kind: {type(error).__name__}"
    apart = _apart(plain, fast)
    if apart <= backbone.rounding:
        return path
    return f"it computes otherwise (by {apart:.1g} of the logits' spread)"


def _contexts(backbone: "Backbone") -> list[list[int]]:
    count = int(backbone.config.vocab_size)
    return [[(3 + 5 * row + 2 * at) % count for at in range(_PROBED)] for row in range(2)]


def _apart(expected: Tensor, computed: Tensor) -> float:
    """The largest difference of logits, as a share of their spread."""
    return float((expected - computed).abs().max() / expected.std().clamp(min=1e-6))


def _alone(backbone: "Backbone", ids: Listed[int]) -> Tensor:
    cache = ContextCache(backbone.geometry, len(ids))
    logits = backbone.forward(torch.tensor(ids, device=backbone.device), cache)
    assert logits is not None  # it was asked for one
    return logits[-1].float()


def _together(
    backbone: "Backbone", contexts: Listed[Listed[int]], path: FastPath | None = None
) -> tuple[Packed, Tensor]:
    """A batch, and the logits after the last token of each context."""
    nobody = ModelIdentity("", "", "")
    pool = TailPool(backbone.geometry)
    opened: list[Sequence] = [
        open_sequence(
            (),
            range(len(ids)),
            spare=0,
            identity=nobody,
            geometry=backbone.geometry,
            dtype=backbone.model.dtype,
            device=backbone.device,
            pool=pool,
        )
        for ids in contexts
    ]
    done = [len(ids) - row for row, ids in enumerate(contexts)]  # the second lacks its last token
    packed_forward(
        backbone,
        [
            Segment(rows=one, ids=ids[:stop], positions=range(stop))
            for one, ids, stop in zip(opened, contexts, done, strict=True)
        ],
        path,
    )
    # Both are asked at their last token: the first again, as two tokens beside one.
    opened[0].truncate(done[0] - 2)
    again = [
        Segment(rows=one, ids=ids[one.length :], positions=range(one.length, len(ids)), wanted=1)
        for one, ids in zip(opened, contexts, strict=True)
    ]
    batch, logits = packed_forward(backbone, again, path)
    assert logits is not None  # both want some
    order = [opened.index(segment.sequence) for segment in batch.segments]
    return batch, logits[[order.index(row) for row in range(len(contexts))]].float()
