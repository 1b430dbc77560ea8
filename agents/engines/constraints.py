"""What the tokens of a turn may be: masks over the vocabulary, for all rows of a step at once."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Constraint(Protocol):
    """What one turn may still write; every token that it writes is pushed."""

    @property
    def words(self) -> int:
        """Length of a mask: 32 tokens to a word."""

    @property
    def over(self) -> bool:
        """Whether nothing may follow; the turn ends without a stop id."""

    @property
    def cut(self) -> bool:
        """Whether the limit of tokens ended it by the shortest way to a whole answer."""

    @property
    def guessable(self) -> bool:
        """Whether drafts may be computed beside the next token."""

    def fill(self, masks: Tensor, drafts: Sequence[int]) -> None:
        """Write what may come next, then what may after each draft that may come.

        Args:
            masks: Zeros, (1 + drafts, words) int32; a bit is set where its token may come.
            drafts: Tokens that may follow.
        """

    def push(self, token: int) -> tuple[int, ...]:
        """Take a sampled token that is no stop id; the tokens that are written in its place.

        Raises:
            RunError: It may not come here.
        """

    def forced(self) -> tuple[int, ...]:
        """Tokens that must come next, whatever the model says; they are pushed like others."""


class Grammar(Protocol):
    """What a whole turn may be; any number of turns begin with it."""

    def begin(self, room: int) -> Constraint:
        """The constraint of a turn that has `room` tokens."""


Masked = tuple[Constraint, Tensor, Sequence[int]]
"""A constraint, the logits after some tokens (1 + drafts, vocabulary), and the drafts."""


def masked(rows: Sequence[Masked]) -> list[Tensor | Exception]:
    """The logits of several turns without the tokens that may not come, or why there are none.

    The masks are made while an accelerator still computes the logits, and nothing waits for it.
    """
    device, vocabulary = rows[0][1].device, rows[0][1].shape[-1]
    counts = [len(logits) for _, logits, _ in rows]
    words = max(constraint.words for constraint, _, _ in rows)
    masks = torch.zeros(sum(counts), words, dtype=torch.int32, pin_memory=device.type == "cuda")
    failed = dict[int, Exception]()
    parts = torch.split(masks, counts)
    for number, (part, (constraint, _, drafts)) in enumerate(zip(parts, rows, strict=True)):
        try:
            constraint.fill(part[:, : constraint.words], drafts)
        except Exception as error:  # a matcher's own code may raise anything; the others go on
            failed[number] = error
    allowed = _bits(masks, device)[:, :vocabulary]
    logits = torch.cat([row for _, row, _ in rows])
    kept = torch.full_like(logits, -torch.inf)
    width = allowed.shape[1]  # ids beyond the tokenizer's are never words
    kept[:, :width] = torch.where(allowed, logits[:, :width], -torch.inf)
    return [failed.get(number, part) for number, part in enumerate(torch.split(kept, counts))]


def _bits(masks: Tensor, device: torch.device) -> Tensor:
    """Masks as booleans, (rows, 32 * words), on the device of the logits."""
    if device.type == "cpu":  # five times as fast as shifting in torch
        bits = np.unpackbits(masks.numpy().view(np.uint8), axis=1, bitorder="little")
        return torch.from_numpy(bits).view(torch.bool)
    sent = masks.to(device, non_blocking=True)
    shifts = torch.arange(32, dtype=torch.int32, device=device)
    return ((sent[:, :, None] >> shifts) & 1).bool().flatten(1)
