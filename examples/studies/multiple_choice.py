"""Questions with options, answered by likelihood, and hints that one model writes for another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from unspoken.agents.bench.turns import generate, until_stop
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn
from unspoken.channels.kv.state import KVState

__all__ = ["ASKS", "Chosen", "answer_text", "choose", "write_hints"]

ASKS: Mapping[str, str] = {
    "answer": "Answer the question in one short sentence.\n\nQuestion: {question}",
    "background": "Write down the facts that help to answer this question.\n\nQuestion: {question}",
}
"""What a sharer is asked to write for another model, by a name for it."""

BATCH = 16


@dataclass(frozen=True, slots=True)
class Chosen:
    """Whether the likeliest option is the right one.

    Attributes:
        by_characters: By log-likelihood over the option's characters, as lm-eval's ``acc_norm``.
        by_sum: By log-likelihood alone, as its ``acc``.
    """

    by_characters: bool
    by_sum: bool


@torch.no_grad()
def choose(
    model: LocalModel, last: int, states: Sequence[KVState], options: Sequence[str], answer: int
) -> Chosen:
    """Score every option as what follows the input.

    Args:
        model: Answers.
        last: The input's last token.
        states: State of the input but its last token.
        options: The options, without the space before them.
        answer: Index of the right one.
    """
    ids = [model.words(f" {option}")[0] for option in options]
    sums = _log_likelihoods(model, last, states, ids)
    by_characters = [total / len(option) for total, option in zip(sums, options, strict=True)]
    return Chosen(_best(by_characters) == answer, _best(sums) == answer)


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def _log_likelihoods(
    model: LocalModel, last: int, states: Sequence[KVState], options: Sequence[tuple[int, ...]]
) -> list[float]:
    """Summed log-probability of each option after one input, all in one pass of transformers."""
    state = KVState.concat(states)
    cache = DynamicCache()
    for number, layer in enumerate(state.layers):
        copies = (len(options), -1, -1, -1)
        cache.update(layer.keys.expand(copies), layer.values.expand(copies), number)
    longest = max(map(len, options))
    fed = [(last, *option[:-1], *[last] * (longest - len(option))) for option in options]
    hf: Any = model.hf
    logits = hf(torch.tensor(fed, device=model.device), past_key_values=cache).logits
    sums = []
    for row, option in zip(logits, options, strict=True):
        logs = row[: len(option)].float().log_softmax(dim=-1)
        sums.append(float(logs.gather(1, model.tensor(option)[:, None]).sum()))
    return sums


def answer_text(model: LocalModel, text: str, options: Sequence[str], answer: int) -> Chosen:
    """Let a model read a text and score the options."""
    ids = (*model.frame("bare").before, *model.words(text)[0])
    state = model.prefill(model.tensor(ids)).state
    return choose(model, ids[-1], [state.slice(0, len(ids) - 1)], options, answer)


@torch.no_grad()
def write_hints(
    model: LocalModel,
    questions: Sequence[str],
    ask: str,
    tokens: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[int, ...]]:
    """What a model writes, greedily, when it is asked about each question: up to `tokens` ids,
    batched.

    Args:
        model: The writer.
        questions: The questions.
        ask: One of `ASKS`.
        tokens: Most tokens of a hint.
        progress: Called with how many are written.
    """
    prompts = []
    for question in questions:
        turn = ChatTurn("user", (ASKS[ask].format(question=question),))
        context = model.context_builder.compose([turn])
        prompts.append(context.ids + model.context_builder.ask(context))
    written: list[tuple[int, ...]] = []
    for first in range(0, len(prompts), BATCH):
        batch = generate(model, prompts[first : first + BATCH], tokens)
        written += [until_stop(model, ids) for ids in batch]
        progress(len(written))
    return written
