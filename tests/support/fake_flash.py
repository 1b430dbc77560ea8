"""torch's variable-length attention by its own description, on any device."""

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest
from torch.nn.functional import scaled_dot_product_attention


def one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_q: Tensor,
    cu_k: Tensor,
    scale: float,
    window: int | None = None,
) -> Tensor:
    """Each segment by torch's own attention, under a mask written for it."""
    parts = []
    for (q, q_end), (k, k_end) in zip(
        zip(cu_q.tolist(), cu_q.tolist()[1:], strict=False),
        zip(cu_k.tolist(), cu_k.tolist()[1:], strict=False),
        strict=True,
    ):
        rows = torch.arange(k_end - k)
        at = torch.arange(q_end - q) + (k_end - k) - (q_end - q)
        mask = rows <= at[:, None]
        if window is not None:
            mask &= rows > at[:, None] - window
        out = scaled_dot_product_attention(
            query[q:q_end].transpose(0, 1),
            key[k:k_end].transpose(0, 1),
            value[k:k_end].transpose(0, 1),
            mask,
            scale=scale,
            enable_gqa=True,
        )
        parts.append(out.transpose(0, 1))
    return torch.cat(parts)


class FakeFlash:
    """`varlen_attn` by its own description, on any device; notes what it was called with."""

    def __init__(self) -> None:
        self.windows: list[tuple[int, int]] = []

    def varlen_attn(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor | None,
        max_q: int,
        max_k: int,
        *,
        return_aux: AuxRequest | None = None,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
        seqused_k: torch.Tensor | None = None,
        block_table: torch.Tensor | None = None,
        num_splits: int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        assert enable_gqa or query.shape[1] == key.shape[1]
        assert cu_seq_k is not None and cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert max_q >= cu_seq_q.diff().max() and max_k >= cu_seq_k.diff().max()
        left, right = window_size
        assert right == 0 and scale is not None
        self.windows.append(window_size)
        window = None if left == -1 else left + 1
        return one_by_one(query, key, value, cu_seq_q, cu_seq_k, scale, window)
