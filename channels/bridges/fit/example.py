"""A case as tensors: features of its message, and what the receiver says after the full text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unspoken.channels.bridges.features import bare_rows
from unspoken.channels.bridges.fit.samples import TokenizedSample
from unspoken.channels.bridges.projection import SINK, feature_rows, native_part
from unspoken.channels.bridges.projector import ProjectorConfig
from unspoken.channels.kv.state import KVState, LayerState
from unspoken.channels.model import CausalModel, TextModel, rotaries

__all__ = [
    "Example",
    "TeacherTargets",
    "answer_loss",
    "divergence",
    "example",
    "head_of",
    "none_losses",
    "sharer_rows",
    "student",
    "target_rows",
    "taught",
]

LIKELIEST = 128


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """The receiver's distributions over a tail's answer after the full text: the likeliest tokens,
    and the rest as one.

    Attributes:
        tokens: (answer tokens, k) ids.
        logs: (answer tokens, k + 1) log-probabilities, the last column that of all other tokens
            together.
        loss: Mean negative log-likelihood of the answer.
    """

    tokens: Tensor
    logs: Tensor
    loss: Tensor


@dataclass(frozen=True, eq=False)
class Example:
    """A case ready to be projected.

    Attributes:
        ids: The receiver's context up to the message's last token.
        at: Position of the message's first token.
        features: (message tokens, columns), half precision.
        native: Layers that the receiver ran itself over the message.
        tails: Per tail, its ids (the answer's last), and how many of them are the answer's.
        kinds: Per tail, its kind.
        taught: Per tail, what the full text says.
    """

    ids: tuple[int, ...]
    at: int
    features: Tensor
    native: tuple[LayerState, ...]
    tails: tuple[tuple[tuple[int, ...], int], ...]
    kinds: tuple[str, ...]
    taught: tuple[TeacherTargets, ...]


def target_rows(
    state: KVState, case: TokenizedSample, receiver: CausalModel, layers: Sequence[int]
) -> Tensor:
    """The receiver's own bare rows of the message, (tokens, columns)."""
    positions = torch.arange(case.at, len(case.ids), device=state.device)
    return bare_rows(state, layers, positions, receiver.geometry, rotaries(receiver))


def sharer_rows(case: TokenizedSample, sharer: CausalModel, layers: Sequence[int]) -> Tensor:
    """The sharer's bare rows for each of the message's tokens, (tokens, columns)."""
    return bare_rows(case.state, layers, case.rows, sharer.geometry, rotaries(sharer))


@torch.no_grad()
def taught(receiver: TextModel, case: TokenizedSample, full: KVState) -> tuple[TeacherTargets, ...]:
    """What the receiver says of each tail after the full text.

    Args:
        receiver: The receiver.
        case: The case.
        full: Its own state of the whole context.
    """
    found = []
    before = full.slice(0, len(case.ids) - 1)
    for tail, count in case.tails:
        logs = _after(receiver, case.ids[-1], tail, count, [before])
        top, tokens = logs.topk(min(LIKELIEST, logs.shape[1]), dim=-1)
        rest = torch.log1p(-top.exp().sum(dim=-1).clamp(max=1 - 1e-6))
        found.append(
            TeacherTargets(
                tokens, torch.cat([top, rest[:, None]], dim=1), answer_loss(logs, tail, count)
            )
        )
    return tuple(found)


def _after(
    receiver: CausalModel,
    last: int,
    tail: Sequence[int],
    count: int,
    states: Sequence[KVState],
    *,
    grad: bool = False,
) -> Tensor:
    """Log-probabilities of the tail's last `count` tokens, (count, vocabulary)."""
    ids = torch.tensor((last, *tail[:-1]), device=receiver.device)
    return receiver.logits(ids, states, last=count, grad=grad).float().log_softmax(dim=-1)


def answer_loss(logs: Tensor, tail: Sequence[int], count: int) -> Tensor:
    """Mean negative log-likelihood of the tail's last `count` tokens."""
    answer = torch.tensor(tail[-count:], device=logs.device)
    return -logs.gather(1, answer[:, None]).mean()


@torch.no_grad()
def example(
    config: ProjectorConfig,
    case: TokenizedSample,
    sharer: TextModel,
    receiver: TextModel,
    full: KVState,
    *,
    teach: bool = True,
) -> Example:
    """A case as an example for a projector of this configuration; without what the full text says
    where not `teach`.
    """
    hidden, native = native_part(receiver, config.native_layers, case.ids, case.at)
    rows = sharer_rows(case, sharer, config.source_layers)
    features = feature_rows(config, rows, case.ids, case.at, receiver, hidden)
    return Example(
        case.ids,
        case.at,
        features.to(torch.float16) if teach else features,
        native,
        case.tails,
        case.kinds,
        taught(receiver, case, full) if teach else (),
    )


def student(
    receiver: TextModel, ex: Example, made: KVState, head: KVState, *, grad: bool = False
) -> list[Tensor]:
    """Log-probabilities of every tail's answer over a projected message, each (answer tokens,
    vocabulary).

    Args:
        receiver: The receiver.
        ex: The example.
        made: The projected state of the message.
        head: The receiver's own state of the context's first tokens, `SINK` or more of them.
        grad: Whether gradients flow into `made`.
    """
    states = [head, made.slice(max(head.stop, ex.at), len(ex.ids) - 1)]
    return [
        _after(receiver, ex.ids[-1], tail, count, states, grad=grad) for tail, count in ex.tails
    ]


def head_of(receiver: TextModel, ids: Sequence[int], at: int) -> KVState:
    """The receiver's own state of what stands before a message, of `SINK` tokens at least."""
    stop = min(at + SINK, len(ids) - 1)
    return receiver.read(ids[:stop])


@torch.no_grad()
def none_losses(receiver: TextModel, case: TokenizedSample) -> list[Tensor]:
    """Loss of every tail's answer where the message is left out: its frame stays, and its first and
    last tokens.
    """
    head = head_of(receiver, case.ids, case.at)
    return [
        answer_loss(_after(receiver, case.ids[-1], tail, count, [head]), tail, count)
        for tail, count in case.tails
    ]


def divergence(logs: Tensor, known: TeacherTargets) -> Tensor:
    """KL(full text || student) in nats, mean over the answer, all but the likeliest tokens taken as
    one.
    """
    at = logs.gather(1, known.tokens)
    rest = torch.log((1 - at.exp().sum(dim=-1)).clamp_min(1e-6))
    mine = torch.cat([at, rest[:, None]], dim=1)
    return (known.logs.exp() * (known.logs - mine)).sum(dim=-1).mean()
