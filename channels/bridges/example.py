"""A case as tensors: features of its message, and what the receiver says after the full text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unspoken.channels.base import CausalModel
from unspoken.channels.bridges.features import bare_rows, layer_states
from unspoken.channels.bridges.lessons import Case
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.bridges.reader import TextModel, rotaries
from unspoken.channels.state import KVState, LayerState

__all__ = [
    "SINK",
    "Example",
    "Taught",
    "answer_loss",
    "divergence",
    "example",
    "feature_rows",
    "head_of",
    "native_part",
    "none_losses",
    "projected_state",
    "sharer_rows",
    "student",
    "target_rows",
    "taught",
]

SINK = 4
"""First positions of a context that a bridge leaves to the receiver."""

LIKELIEST = 128


@dataclass(frozen=True, eq=False)
class Taught:
    """The receiver's distributions over a tail's answer after the full text: the likeliest tokens, and the rest as one.

    Attributes:
        tokens: (answer tokens, k) ids.
        logs: (answer tokens, k + 1) log-probabilities, the last column that of all other tokens together.
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
    taught: tuple[Taught, ...]


def feature_rows(
    config: ProjectorConfig,
    sharer_rows: Tensor,
    ids: Sequence[int],
    at: int,
    receiver: CausalModel,
    hidden: Tensor | None,
) -> Tensor:
    """All features of the message tokens, (tokens, columns): the sharer's rows, embeddings, native layers' output.

    Args:
        config: Which features there are.
        sharer_rows: Bare rows of the sharer's source layers, (tokens, columns).
        ids: The receiver's context up to the message's last token.
        at: Position of the message's first token.
        receiver: Gives its embeddings.
        hidden: Output of the native layers, (tokens, hidden_size), where there are any.
    """
    parts = [sharer_rows.to(receiver.device)]
    if config.embeddings:
        first = max(at - config.embeddings + 1, 0)
        embedded = receiver.embed(torch.tensor(ids[first:], device=receiver.device)).float()
        for back in range(config.embeddings):
            start = at - first - back
            rows = embedded[max(start, 0) : len(embedded) - back]
            parts.append(torch.nn.functional.pad(rows, (0, 0, max(-start, 0), 0)))
    if hidden is not None:
        parts.append(hidden.float())
    return torch.cat(parts, dim=1)


def native_part(
    receiver: CausalModel, layers: int, ids: Sequence[int], at: int
) -> tuple[Tensor | None, tuple[LayerState, ...]]:
    """What the receiver's first `layers` layers make of the message: their output, and their keys and values."""
    if not layers:
        return None, ()
    tensor = torch.tensor(ids, device=receiver.device)
    positions = torch.arange(len(ids), device=receiver.device)
    hidden, states = receiver.run_layers(receiver.embed(tensor), 0, layers, positions)
    kept = tuple(
        LayerState(state.keys[:, at:].clone(), state.values[:, at:].clone(), at) for state in states
    )
    return hidden[at:], kept


def target_rows(state: KVState, case: Case, receiver: CausalModel, layers: Sequence[int]) -> Tensor:
    """The receiver's own bare rows of the message, (tokens, columns)."""
    positions = torch.arange(case.at, len(case.ids), device=state.device)
    return bare_rows(state, layers, positions, receiver.geometry, rotaries(receiver))


def sharer_rows(case: Case, sharer: CausalModel, layers: Sequence[int]) -> Tensor:
    """The sharer's bare rows for each of the message's tokens, (tokens, columns)."""
    return bare_rows(case.state, layers, case.rows, sharer.geometry, rotaries(sharer))


@torch.no_grad()
def taught(receiver: TextModel, case: Case, full: KVState) -> tuple[Taught, ...]:
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
            Taught(tokens, torch.cat([top, rest[:, None]], dim=1), answer_loss(logs, tail, count))
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
    case: Case,
    sharer: TextModel,
    receiver: TextModel,
    full: KVState,
    *,
    teach: bool = True,
) -> Example:
    """A case as an example for a projector of this configuration; without what the full text says where not `teach`."""
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


def projected_state(
    projector: Projector,
    features: Tensor,
    native: Sequence[LayerState],
    at: int,
    receiver: CausalModel,
) -> KVState:
    """The receiver's state of the message at positions `at` and on, as the projector makes it."""
    config = projector.config
    positions = torch.arange(at, at + len(features), device=receiver.device)
    made = layer_states(
        projector(features.float()),
        config.target_layers(receiver.geometry),
        positions,
        at,
        receiver.geometry,
        rotaries(receiver),
        receiver.dtype,
    )
    return KVState((*native, *made), at, at + len(features), receiver.identity, at)


def student(
    receiver: TextModel, ex: Example, made: KVState, head: KVState, *, grad: bool = False
) -> list[Tensor]:
    """Log-probabilities of every tail's answer over a projected message, each (answer tokens, vocabulary).

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
def none_losses(receiver: TextModel, case: Case) -> list[Tensor]:
    """Loss of every tail's answer where the message is left out: its frame stays, and its first and last tokens."""
    head = head_of(receiver, case.ids, case.at)
    return [
        answer_loss(_after(receiver, case.ids[-1], tail, count, [head]), tail, count)
        for tail, count in case.tails
    ]


def divergence(logs: Tensor, known: Taught) -> Tensor:
    """KL(full text || student) in nats, mean over the answer, all but the likeliest tokens taken as one."""
    at = logs.gather(1, known.tokens)
    rest = torch.log((1 - at.exp().sum(dim=-1)).clamp_min(1e-6))
    mine = torch.cat([at, rest[:, None]], dim=1)
    return (known.logs.exp() * (known.logs - mine)).sum(dim=-1).mean()
