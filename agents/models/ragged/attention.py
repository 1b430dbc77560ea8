"""Attention of packed rows: a shared prefix is read once, what is a row's own is padded.

Transformers calls it in place of its own attention while a `Packed` batch is current. Rows that
decode one token are computed together. Column p of their scores is position p of the prefix; after
the prefix follow the columns of what is a row's own. Each piece of memory is multiplied once with
the queries of all rows whose prefix it belongs to. One softmax goes over all columns of a row, so
nothing needs to be merged. Segments of several tokens are computed one by one.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from unspoken.agents.models.ragged.decode_rows import DecodeRows, View
from unspoken.agents.models.ragged.packed import Packed
from unspoken.agents.models.ragged.stretch import Sight, Stretch
from unspoken.agents.models.ragged.varlen import attend_packed, has_flash
from unspoken.channels.kv.geometry import LayerGeometry

NAME = "unspoken_ragged"
"""What transformers knows it by."""

FEW_TOKENS = 16
"""So many tokens of a sequence, such as a guess, read a prefix where it lies; putting it together
with what is the sequence's own would take longer than reading it. For more tokens it is little."""


class _Current(threading.local):
    batch: Packed | None = None


_CURRENT = _Current()


@contextmanager
def current(batch: Packed) -> Iterator[None]:
    """Make a batch the one that this thread's forward is of."""
    _CURRENT.batch = batch
    try:
        yield
    finally:
        _CURRENT.batch = None


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """As transformers' attention functions: (1, heads, tokens, size) to (1, tokens, heads, size).

    The keys and values are in the rows of the batch already. The rest are flags and what the batch
    knows better, unless it is a tensor: some architectures choose what a token sees by one.
    """
    batch = _CURRENT.batch
    if batch is None:  # the model is called on another thread meanwhile, by its owner
        more["softcap"], more["s_aux"] = softcap, s_aux
        plain = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **more
        )
        return plain[0], None
    batch.layers_seen += 1
    more["attention_mask"] = attention_mask
    batch.ignored.update(
        name for name, given in more.items() if isinstance(given, Tensor) and name != "position_ids"
    )
    queries = query[0].transpose(0, 1) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    return attend(batch, module.layer_idx, queries, softcap, s_aux)[None], None


def attend(
    batch: Packed,
    layer: int,
    queries: Tensor,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of a batch's tokens on a layer; their keys and values are in its rows already.

    Args:
        batch: The batch.
        layer: The layer's number.
        queries: (tokens, heads, size), scaled.
        softcap: Soft cap of the scores.
        sinks: A score by head that takes weight from all others, (heads,).

    Returns:
        (tokens, heads, value size).
    """
    if len(batch.groups) == 1 and not batch.stretches:  # then nothing is put together
        return _decode(batch.groups[0][1], layer, queries, softcap, sinks)
    output = queries.new_empty(*queries.shape[:2], batch.geometry.layers[layer].head_dim)
    for place, rows in batch.groups:
        output[place] = _decode(rows, layer, queries[place], softcap, sinks)
    for place, stretch in batch.stretches:
        output[place] = _stretch(stretch, layer, queries[place].transpose(0, 1), softcap, sinks)
    return output


def _no_mask(*args: Any, **kwargs: Any) -> Any:
    """None: the batch knows what each token sees. Without a batch, transformers' own mask."""
    return None if _CURRENT.batch is not None else sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _no_mask)


def _decode(
    rows: DecodeRows, layer: int, queries: Tensor, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """One token of each row, (rows, heads, size) to (rows, heads, value size).

    A group is the heads that share keys and values. Scores and weights are (rows, kv_heads, group,
    columns); where there is a prefix, whose products are by head, they are (kv_heads, rows, group,
    columns). A decoded token is some forty small operations a layer, so each one spared counts.
    """
    keys, values = rows.own(layer)
    kv_heads, view = rows.geometry.layers[layer].kv_heads, rows.view_of(layer)
    scores = _over_slots(rows, queries, kv_heads, keys)
    if not view.columns:
        weights = _softmax(
            scores,
            None if view.hidden is None else view.hidden[:, None, None],
            softcap,
            None if sinks is None else sinks.view(kv_heads, -1, 1),
        )
        return _over_slots(rows, weights, kv_heads, values).flatten(1, 2)
    by_head = queries.view(len(rows), kv_heads, -1, queries.shape[-1]).transpose(0, 1)
    weights = _softmax(
        torch.cat((*_of_prefix(view, layer, by_head), scores.transpose(0, 1)), dim=-1),
        None if view.hidden is None else view.hidden[:, None],
        softcap,
        None if sinks is None else sinks.view(kv_heads, 1, -1, 1),
    )
    own = weights[..., view.columns :].transpose(0, 1)
    mixed = _over_slots(rows, own, kv_heads, values)
    for piece in view.pieces:
        mine = weights[..., piece.columns]
        if piece.rows is None:
            mixed += _over_heads(mine, piece.of(layer)[1]).transpose(0, 1)
        else:
            part = _over_heads(mine.index_select(1, piece.rows), piece.of(layer)[1])
            mixed.index_add_(0, piece.rows, part.transpose(0, 1))
    return mixed.flatten(1, 2)


def _over_slots(rows: DecodeRows, left: Tensor, kv_heads: int, right: Tensor) -> Tensor:
    """Products of each row, (rows, …, x), with what is its own, (slots * kv_heads, x, y).

    Returns:
        (rows, kv_heads, group, y).
    """
    count, width = left.shape[0], left.shape[-1]
    if rows.where is not None:
        spread = left.new_zeros(right.shape[0] // kv_heads, *left.shape[1:])
        left = spread.index_copy_(0, rows.where, left)
    product = torch.bmm(left.reshape(right.shape[0], -1, width), right)
    if rows.where is not None:
        product = product.view(-1, kv_heads, *product.shape[1:]).index_select(0, rows.where)
    return product.view(count, kv_heads, -1, right.shape[-1])


def _over_heads(left: Tensor, right: Tensor) -> Tensor:
    """Products of (kv_heads, a, b, x) with one (kv_heads, x, y) for all: (kv_heads, a, b, y)."""
    return torch.bmm(left.flatten(1, 2), right).view(*left.shape[:3], -1)


def _of_prefix(view: View, layer: int, by_head: Tensor) -> list[Tensor]:
    """Scores of all rows over their prefixes, (kv_heads, rows, group, columns), side by side."""
    parts, everywhere = [], True
    for piece in view.pieces:
        asked = by_head if piece.rows is None else by_head.index_select(1, piece.rows)
        parts.append(_over_heads(asked, piece.of(layer)[0].transpose(1, 2)))
        everywhere &= piece.rows is None
    if everywhere:  # then the pieces are one row's, which follow each other
        return parts
    scores = by_head.new_zeros(*by_head.shape[:3], view.columns)
    for piece, part in zip(view.pieces, parts, strict=True):
        if piece.rows is None:
            scores[..., piece.columns] = part
        else:
            scores[..., piece.columns].index_copy_(1, piece.rows, part)
    return [scores]


def _softmax(
    scores: Tensor, hidden: Tensor | None, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Weights of scores (…, columns), computed in float32; the others are broadcast to them."""
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is None:
        return scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)
    sink = sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
    both = torch.cat((scores, sink), dim=-1).softmax(dim=-1, dtype=torch.float32)
    return both[..., :-1].to(scores.dtype)


def _by_flash(queries: Tensor, keys: Tensor, values: Tensor, layer: LayerGeometry) -> Tensor:
    """The last tokens of one sequence, whose mask nobody writes down; as `_stretch`."""
    tokens, rows = queries.shape[1], keys.shape[1]
    edges = partial(torch.arange, dtype=torch.int32, device=queries.device)
    return attend_packed(
        queries.transpose(0, 1),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        cu_q=edges(0, tokens + 1, tokens),
        cu_k=edges(0, rows + 1, rows),
        max_q=tokens,
        max_k=rows,
        scale=1.0,
        window=layer.window,
    )


def _stretch(
    stretch: Stretch, layer: int, queries: Tensor, softcap: float | None, sinks: Tensor | None
) -> Tensor:
    """Several tokens of one sequence, (heads, tokens, size) to (tokens, heads, value size)."""
    pieces, sight = stretch.pieces_of(layer)
    few = len(pieces) > 1 and len(stretch) <= FEW_TOKENS
    if few or softcap is not None or sinks is not None:
        return _by_pieces(queries, pieces, sight, softcap, sinks)
    keys, values = pieces[0]
    if len(pieces) > 1:
        keys, values = (torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True))
    if stretch.last and has_flash(queries, values, softcap):
        return _by_flash(queries, keys, values, stretch.segment.sequence.geometry.layers[layer])
    mixed = scaled_dot_product_attention(
        queries[None],
        keys[None],
        values[None],
        attn_mask=None if sight.seen is None else sight.seen[None, None],
        is_causal=sight.seen is None,
        scale=1.0,
        enable_gqa=queries.shape[0] != keys.shape[0],
    )
    return mixed[0].transpose(0, 1)


def _by_pieces(
    queries: Tensor,
    pieces: list[tuple[Tensor, Tensor]],
    sight: Sight,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """The same with one softmax over the scores of all pieces; nothing is copied."""
    heads, count, size = queries.shape
    grouped = queries.reshape(pieces[0][0].shape[0], -1, count, size)
    scores = [_over_heads(grouped, keys.transpose(1, 2)) for keys, _ in pieces]
    rows = [part.shape[-1] for part in scores]
    seen = sight.seen
    if seen is None:
        seen = torch.ones(count, sum(rows), dtype=torch.bool, device=queries.device).tril()
    sinks = None if sinks is None else sinks.view(grouped.shape[0], -1, 1, 1)
    weights = _softmax(torch.cat(scores, dim=-1), ~seen, softcap, sinks).split_with_sizes(
        rows, dim=-1
    )
    mixed = _over_heads(weights[0], pieces[0][1])
    for part, (_, values) in zip(weights[1:], pieces[1:], strict=True):
        mixed += _over_heads(part, values)
    return mixed.view(heads, count, -1).transpose(0, 1)
