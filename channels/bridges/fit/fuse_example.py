"""An input that two models have read, and what the receiver then says of its tails over an enriched
cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unspoken.channels.bridges.fit.example import answer_loss, sharer_rows
from unspoken.channels.bridges.fit.samples import TokenizedSample
from unspoken.channels.bridges.fuser import Fuser, FuserConfig, fused_state, own_rows
from unspoken.channels.bridges.projection import SINK
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import CausalModel, TextModel

__all__ = ["FuseInput", "contrast", "fuse_input", "fused_context", "tail_logs", "tail_losses"]


@dataclass(frozen=True, eq=False)
class FuseInput:
    """An input that both models have read.

    Attributes:
        case: Its tokens and tails.
        theirs: The sharer's bare rows for each of its tokens, (tokens, columns).
        own: The receiver's, of all layers, (tokens, columns).
        head: The receiver's own state of what stands before it, of `SINK` tokens at least.
    """

    case: TokenizedSample
    theirs: Tensor
    own: Tensor
    head: KVState


@torch.no_grad()
def fuse_input(
    config: FuserConfig, case: TokenizedSample, sharer: CausalModel, receiver: TextModel
) -> FuseInput:
    """Let the receiver read a case too, and take both models' rows of it."""
    own = receiver.read(case.ids)
    head = own.slice(0, max(case.at, SINK))
    theirs = sharer_rows(case, sharer, config.source_layers)
    rows = own_rows(own, case.at, receiver)
    return FuseInput(replace(case, state=head), theirs.to(rows.device), rows, head)


def fused_context(fuser: Fuser | None, made: FuseInput, receiver: CausalModel) -> list[KVState]:
    """State of the whole context but its last token, enriched; with None as the receiver made it."""
    state = fused_state(fuser, made.theirs, made.own, made.case.at, receiver)
    return [made.head, state.slice(made.head.stop, len(made.case.ids) - 1)]


def tail_logs(
    receiver: CausalModel,
    last: int,
    tail: Sequence[int],
    count: int,
    states: Sequence[KVState],
    *,
    grad: bool = False,
) -> Tensor:
    """Log-probabilities of a tail's last `count` tokens, (count, vocabulary).

    Args:
        receiver: Says them.
        last: The context's last token, computed anew.
        tail: What follows it.
        count: How many of the tail's tokens are scored.
        states: State of the context but its last token.
        grad: Whether gradients flow into `states`.
    """
    ids = torch.tensor((last, *tail[:-1]), device=receiver.device)
    return receiver.logits(ids, states, last=count, grad=grad).float().log_softmax(dim=-1)


def tail_losses(
    fuser: Fuser | None, made: FuseInput, receiver: CausalModel, *, grad: bool = False
) -> list[Tensor]:
    """Mean loss per token of every tail, over the enriched cache or, with None, over the receiver's
    own.
    """
    states, last = fused_context(fuser, made, receiver), made.case.ids[-1]
    return [
        answer_loss(tail_logs(receiver, last, tail, count, states, grad=grad), tail, count)
        for tail, count in made.case.tails
    ]


def contrast(said: Sequence[Tensor]) -> Tensor:
    """Cross-entropy over a question's options, the right one first, by their mean loss per token."""
    scores = -torch.stack(list(said))
    return scores.logsumexp(dim=0) - scores[0]
