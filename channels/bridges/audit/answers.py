"""Answers of a receiver over a message: the likeliest of several, or a few words of its own."""

from collections.abc import Sequence

import torch

from unspoken.channels.kv.state import KVState
from unspoken.channels.model import TextModel


@torch.no_grad()
def losses_of(
    receiver: TextModel,
    states: Sequence[KVState],
    asked: Sequence[int],
    answers: Sequence[Sequence[int]],
) -> list[float]:
    """Mean negative log-likelihood of each of several answers to the same question, nats per token.

    Args:
        receiver: Answers.
        states: What the question follows.
        asked: Ids of the question, at least one.
        answers: Ids of the answers, each at least one.
    """
    read = receiver.prefill(torch.tensor(tuple(asked), device=receiver.device), states)
    first = read.logits.float().log_softmax(dim=-1)
    losses = []
    for answer in answers:
        ids = torch.tensor(tuple(answer), device=receiver.device)
        logs = first[None]
        if len(ids) > 1:
            after = receiver.logits(ids[:-1], [read.state]).float().log_softmax(dim=-1)
            logs = torch.cat([logs, after])
        losses.append(-float(logs.gather(1, ids[:, None]).mean()))
    return losses


@torch.no_grad()
def greedy(
    receiver: TextModel, states: Sequence[KVState], asked: Sequence[int], tokens: int = 16
) -> str:
    """The receiver's likeliest next words, up to `tokens` tokens or the end of its turn or line.

    Args:
        receiver: Answers.
        states: What the question follows.
        asked: Ids of the question, at least one.
        tokens: The most.
    """
    ids = torch.tensor(tuple(asked), device=receiver.device)
    written: list[int] = []
    text = ""
    for _ in range(tokens):
        read = receiver.prefill(ids, states)
        token = int(read.logits.argmax())
        if token in receiver.stop_ids:
            break
        written.append(token)
        text = receiver.decode(written)
        if "\n" in text.lstrip():
            break
        ids, states = ids.new_tensor([token]), [read.state]
    return next(iter(text.strip().splitlines()), "").strip()
