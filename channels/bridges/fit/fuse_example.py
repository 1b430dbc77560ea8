"""An input that two models have read, and what the receiver says of it over an enriched cache."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unspoken.channels.bridges.fit.example import answer_loss, answers_logs, sharer_rows
from unspoken.channels.bridges.fit.samples import TokenizedSample
from unspoken.channels.bridges.fuser import Fuser, FuserConfig, fused_state, own_rows
from unspoken.channels.bridges.projection import SINK
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import CausalModel, TextModel


@dataclass(frozen=True, eq=False, kw_only=True)
class FuseInput:
    """An input that both models have read.

    Attributes:
        sample: Its tokens and targets.
        theirs: The sharer's bare rows for each of its tokens, (tokens, columns).
        own: The receiver's, of all layers, (tokens, columns).
        head: The receiver's own state of what stands before it, of `SINK` tokens at least.
    """

    sample: TokenizedSample
    theirs: Tensor
    own: Tensor
    head: KVState


@torch.no_grad()
def fuse_input(
    config: FuserConfig, sample: TokenizedSample, sharer: CausalModel, receiver: TextModel
) -> FuseInput:
    """Let the receiver read a sample too, and take both models' rows of it."""
    full = receiver.read(sample.ids)
    head = full.slice(0, max(sample.at, SINK))
    theirs = sharer_rows(sample, sharer, config.source_layers)
    rows = own_rows(full, sample.at, receiver)
    return FuseInput(
        sample=replace(sample, state=head), theirs=theirs.to(rows.device), own=rows, head=head
    )


def fused_context(fuser: Fuser | None, given: FuseInput, receiver: CausalModel) -> list[KVState]:
    """State of the whole context but its last token: enriched, or with None the receiver's own."""
    state = fused_state(fuser, given.theirs, given.own, given.sample.at, receiver)
    return [given.head, state.slice(given.head.stop, len(given.sample.ids) - 1)]


def answer_losses(
    fuser: Fuser | None, given: FuseInput, receiver: CausalModel, *, grad: bool = False
) -> list[Tensor]:
    """Mean loss per token of every answer over the enriched cache, or with None the own one."""
    states, last = fused_context(fuser, given, receiver), given.sample.ids[-1]
    targets = given.sample.targets
    every = answers_logs(receiver, last, targets, states, grad=grad)
    return [answer_loss(logs, target) for logs, target in zip(every, targets, strict=True)]


def contrast(losses: Sequence[Tensor]) -> Tensor:
    """Cross-entropy over a question's options, the right one first, by mean loss per token."""
    scores = -torch.stack(list(losses))
    return scores.logsumexp(dim=0) - scores[0]
