"""A sample as tensors: features of its message, and what the receiver says after the full text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unspoken.channels.bridges.features import bare_rows
from unspoken.channels.bridges.fit.samples import TokenizedSample, TokenizedTarget
from unspoken.channels.bridges.projection import SINK, feature_rows, native_part
from unspoken.channels.bridges.projector import ProjectorConfig
from unspoken.channels.kv.layer_state import LayerState
from unspoken.channels.kv.state import KVState
from unspoken.channels.model import Branching, CausalModel, TextModel, rotaries

LIKELIEST = 128


@dataclass(frozen=True, eq=False)
class TeacherTargets:
    """What the receiver says of an answer after the full text: its likeliest tokens, and the rest.

    Attributes:
        tokens: (answer tokens, k) ids.
        logs: (answer tokens, k + 1) log-probabilities, the last column that of all other tokens
            together.
        loss: Mean negative log-likelihood of the answer.
    """

    tokens: Tensor
    logs: Tensor
    loss: Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Example:
    """A sample ready to be projected.

    Attributes:
        ids: The receiver's context up to the message's last token.
        at: Position of the message's first token.
        features: (message tokens, columns), half precision.
        native: Layers that the receiver ran itself over the message.
        targets: What is asked of the message.
        teacher: Per target, what the full text says.
    """

    ids: tuple[int, ...]
    at: int
    features: Tensor
    native: tuple[LayerState, ...]
    targets: tuple[TokenizedTarget, ...]
    teacher: tuple[TeacherTargets, ...]


def target_rows(
    state: KVState, sample: TokenizedSample, receiver: CausalModel, layers: Sequence[int]
) -> Tensor:
    """The receiver's own bare rows of the message, (tokens, columns)."""
    positions = torch.arange(sample.at, len(sample.ids), device=state.device)
    return bare_rows(state, layers, positions, receiver.geometry, rotaries(receiver))


def sharer_rows(sample: TokenizedSample, sharer: CausalModel, layers: Sequence[int]) -> Tensor:
    """The sharer's bare rows for each of the message's tokens, (tokens, columns)."""
    return bare_rows(sample.state, layers, sample.rows, sharer.geometry, rotaries(sharer))


@torch.no_grad()
def features_of(
    config: ProjectorConfig, sample: TokenizedSample, sharer: CausalModel, receiver: CausalModel
) -> tuple[Tensor, tuple[LayerState, ...]]:
    """Features of a message, (tokens, columns), and the receiver's native layers over it."""
    hidden, native = native_part(receiver, config.native_layers, sample.ids, sample.at)
    rows = sharer_rows(sample, sharer, config.source_layers)
    return feature_rows(config, rows, sample.ids, sample.at, receiver, hidden), native


@torch.no_grad()
def example(
    config: ProjectorConfig,
    sample: TokenizedSample,
    sharer: TextModel,
    receiver: TextModel,
    full: KVState,
) -> Example:
    """A sample ready for a projector; `full` is the receiver's state of the whole context."""
    features, native = features_of(config, sample, sharer, receiver)
    teacher = teacher_targets(receiver, sample, full)
    return Example(
        ids=sample.ids,
        at=sample.at,
        features=features.to(torch.float16),
        native=native,
        targets=sample.targets,
        teacher=teacher,
    )


@torch.no_grad()
def teacher_targets(
    receiver: TextModel, sample: TokenizedSample, full: KVState
) -> tuple[TeacherTargets, ...]:
    """What the receiver says of each target after the full text, whose state `full` is."""
    before, teacher = full.slice(0, len(sample.ids) - 1), []
    every = answers_logs(receiver, sample.ids[-1], sample.targets, [before])
    for target, logs in zip(sample.targets, every, strict=True):
        top, tokens = logs.topk(min(LIKELIEST, logs.shape[1]), dim=-1)
        rest = torch.log1p(-top.exp().sum(dim=-1).clamp(max=1 - 1e-6))
        top = torch.cat([top, rest[:, None]], dim=1)
        teacher.append(TeacherTargets(tokens, top, answer_loss(logs, target)))
    return tuple(teacher)


def answers_logs(
    receiver: CausalModel,
    last: int,
    targets: Sequence[TokenizedTarget],
    states: Sequence[KVState],
    *,
    grad: bool = False,
) -> list[Tensor]:
    """Log-probabilities of the answer of each target, (answer tokens, vocabulary).

    All of them are computed in one pass, where the receiver can.

    Args:
        receiver: Says them.
        last: The context's last token, recomputed.
        targets: What follows it.
        states: State of the context but its last token.
        grad: Whether gradients flow into `states`.
    """
    branches = [
        torch.tensor((last, *target.ids[:-1]), device=receiver.device) for target in targets
    ]
    counts = [target.count for target in targets]
    if isinstance(receiver, Branching) and len(branches) > 1:
        logits = receiver.branch_logits(branches, counts, states, grad=grad)
    else:
        each = zip(branches, counts, strict=True)
        logits = [receiver.logits(ids, states, last=count, grad=grad) for ids, count in each]
    return [one.float().log_softmax(dim=-1) for one in logits]


def answer_loss(logs: Tensor, target: TokenizedTarget) -> Tensor:
    """Mean negative log-likelihood of a target's answer."""
    answer = torch.tensor(target.ids[-target.count :], device=logs.device)
    return -logs.gather(1, answer[:, None]).mean()


def student(
    receiver: TextModel, ex: Example, projected: KVState, head: KVState, *, grad: bool = False
) -> list[Tensor]:
    """Log-probabilities of every answer over a projected message, each (answer tokens, vocabulary).

    Args:
        receiver: The receiver.
        ex: What was projected.
        projected: The projected state of the message.
        head: The receiver's own state of the context's first tokens, `SINK` or more of them.
        grad: Whether gradients flow into `projected`.
    """
    states = [head, projected.slice(max(head.stop, ex.at), len(ex.ids) - 1)]
    return answers_logs(receiver, ex.ids[-1], ex.targets, states, grad=grad)


def head_of(receiver: TextModel, ids: Sequence[int], at: int) -> KVState:
    """The receiver's own state of what stands before a message, of `SINK` tokens at least."""
    stop = min(at + SINK, len(ids) - 1)
    return receiver.read(ids[:stop])


@torch.no_grad()
def none_losses(receiver: TextModel, sample: TokenizedSample) -> list[Tensor]:
    """Loss of every answer without the message; the frame stays, and the first and last tokens."""
    head, last = [head_of(receiver, sample.ids, sample.at)], sample.ids[-1]
    every = answers_logs(receiver, last, sample.targets, head)
    return [answer_loss(logs, target) for logs, target in zip(every, sample.targets, strict=True)]


def divergence(logs: Tensor, known: TeacherTargets) -> Tensor:
    """KL(full text || student) in nats a token; all but the likeliest tokens count as one."""
    likeliest = logs.gather(1, known.tokens)
    rest = torch.log((1 - likeliest.exp().sum(dim=-1)).clamp_min(1e-6))
    logs_of_all = torch.cat([likeliest, rest[:, None]], dim=1)
    return (known.logs.exp() * (known.logs - logs_of_all)).sum(dim=-1).mean()
