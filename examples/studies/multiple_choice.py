"""Questions with options, answered by likelihood, and hints that one model writes for another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from unspoken.agents.bench.turns import generate, until_stop
from unspoken.agents.models.model import LocalModel
from unspoken.agents.prompts.context import ChatTurn
from unspoken.channels.bridges.audit.fuse_audit import likeliest, log_likelihoods
from unspoken.channels.data.rows import ChoiceRow
from unspoken.channels.kv.state import KVState

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
def choose(model: LocalModel, last: int, states: Sequence[KVState], row: ChoiceRow) -> Chosen:
    """Score a question's options over the state of an input but its last token."""
    sums = log_likelihoods(model, last, states, row.options)
    best = likeliest(sums, row.options), likeliest(sums, row.options, by_characters=False)
    return Chosen(best[0] == row.answer, best[1] == row.answer)


def answer_text(model: LocalModel, text: str, row: ChoiceRow) -> Chosen:
    """Let a model read a text and score a question's options."""
    ids = (*model.frame("bare").before, *model.words(text)[0])
    state = model.prefill(model.tensor(ids)).state
    return choose(model, ids[-1], [state.slice(0, len(ids) - 1)], row)


@torch.no_grad()
def write_hints(
    model: LocalModel,
    questions: Sequence[str],
    ask: str,
    tokens: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[int, ...]]:
    """What a model writes, greedily, when it is asked about each question.

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
        prompts.append(context.ids + model.context_builder.ask())
    written: list[tuple[int, ...]] = []
    for first in range(0, len(prompts), BATCH):
        batch = generate(model, prompts[first : first + BATCH], tokens)
        written += [until_stop(model, ids) for ids in batch]
        progress(len(written))
    return written
