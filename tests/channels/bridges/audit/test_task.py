"""What a bridge is worth in a receiver's turn, as a workflow composes it."""

from dataclasses import replace

import pytest
import torch
from flows import Pair

from unspoken.agents import Agent, Workflow
from unspoken.agents.testing import FakeBridge
from unspoken.channels import ProjectedCacheChannel
from unspoken.channels.bridges.audit.contexts import TaskContext, TaskRows, stranger, task_contexts
from unspoken.channels.bridges.audit.task import (
    ALONE,
    BRIDGE,
    OTHER,
    SYSTEM,
    TEXT,
    WRONG,
    Measured,
    Task,
    asked,
)
from unspoken.channels.bridges.audit.worth import task_summary, task_table, worth
from unspoken.channels.bridges.projector import Projector, ProjectorConfig
from unspoken.channels.data.rows import QaRow
from unspoken.channels.data.text import Corpus

WORDS = ("reader", "solver", "value", "document", "key", "user")
ROWS = [
    QaRow(f"the {word} is in box {n}, says the {word}", f"what is in box {n}?", (f"the {word}",))
    for n, word in enumerate(WORDS)
]
ALONE_CONFIG = ProjectorConfig(source_layers=(), rank=4, hidden=0)


def contexts(pair: Pair, size: int = 100, count: int = 4) -> list[TaskContext]:
    return task_contexts(ROWS, pair[1], size, count=count, questions=1)


def simulated(
    kept: float,
    alone: float,
    *,
    style: float = 0.0,
    task: float = 0.0,
    text_adds: float = 0.3,
    count: int = 120,
) -> Measured:
    """Losses of contexts whose text gains 2 nats on average."""
    generator = torch.Generator().manual_seed(0)

    def noise() -> torch.Tensor:
        return 0.2 * torch.randn(count, generator=generator)

    text = 1 + torch.rand(count, generator=generator)
    losses = {
        TEXT: text,
        OTHER: text + 2 + noise(),
        BRIDGE: text + 2 - 2 * kept + noise(),
        WRONG: text + 2 - 2 * style + noise(),
        ALONE: text + 2 - 2 * alone + noise(),
    }
    score = torch.rand(count, generator=generator)
    scores = {TEXT: score, OTHER: score - text_adds, BRIDGE: score + task + noise() / 10}
    return Measured(size=256, questions=240, tokens=250.0, loss=losses, score=scores)


def test_figures_of_simulated_losses_are_what_was_simulated() -> None:
    """Each interval holds the truth, and the bounds part a good bridge from embeddings alone."""
    found = worth(simulated(0.95, 0.6, style=0.02, task=-0.01))
    truth = {"message_kept": 0.95, "sharer_adds": 0.35, "style": 0.02, "task_difference": -0.01}
    for name, value in truth.items():
        estimate = found[name]
        assert estimate.low is not None and estimate.high is not None
        assert estimate.low < value < estimate.high and estimate.high - estimate.low < 0.1
    assert found["text_adds"].value == pytest.approx(0.3)
    adds = worth(simulated(0.6, 0.6))["sharer_adds"]
    assert adds.low is not None and adds.low < 0


def test_a_text_that_scores_nothing_shows_nothing_of_the_task() -> None:
    """Where T scores as T′ does, a bridge loses nothing, and that is not shown of its worth."""
    for adds in (0.0, -0.1):
        found = worth(simulated(0.95, 0.6, text_adds=adds))["task_difference"]
        assert found.value is not None and found.low is None


def test_the_worst_size_counts() -> None:
    """Of each figure the one with the worst bound; contexts are the fewest of a size."""
    good, bad = simulated(0.95, 0.6), replace(simulated(0.8, 0.7, style=0.1), size=1024)
    table = task_table([good, bad])
    summary = task_summary(table, TaskRows(shared=3, checked=True, source="file.jsonl"))
    assert summary["message_kept"] == pytest.approx(0.8, abs=0.05)
    assert summary["style"] == pytest.approx(0.1, abs=0.05)
    assert (summary["contexts"], summary["contexts_from"]) == (120, "file.jsonl")
    assert summary["task_tokens"] == 1024
    assert (summary["passages_left_out"], summary["fitted_text_compared"]) == (3, "yes")
    nothing = task_summary([], TaskRows())
    assert nothing["message_kept_low"] is None and nothing["contexts"] == 0


def test_without_a_bridge_of_embeddings_alone_nothing_is_said_of_the_sharer() -> None:
    measured = simulated(0.9, 0.5)
    losses = {name: loss for name, loss in measured.loss.items() if name != ALONE}
    assert "sharer_adds" not in worth(replace(measured, loss=losses))


def test_a_bridge_that_makes_the_receiver_s_own_rows_keeps_all(pair: Pair) -> None:
    """Its losses are the text's, and after the wrong message those of the wrong text."""
    alone = Projector(ALONE_CONFIG, pair[0].geometry, pair[1].geometry).eval()
    task = Task(
        bridge=FakeBridge(*pair),
        sharer=pair[0],
        receiver=pair[1],
        alone=alone.requires_grad_(False),
        written=2,
    )
    measured = task.measure(contexts(pair), 100, lambda stage, part: None)
    loss = measured.loss
    assert torch.allclose(loss[BRIDGE], loss[TEXT], atol=1e-4)
    assert torch.allclose(loss[WRONG], loss[OTHER], atol=1e-4)
    assert not torch.allclose(loss[ALONE], loss[TEXT], atol=1e-3)
    assert torch.equal(measured.score[BRIDGE], measured.score[TEXT])


def test_the_question_is_asked_in_the_context_that_a_workflow_composes(pair: Pair) -> None:
    """Ids of the audit's turn are those of a run's receiver, the message before the question."""
    sharer, receiver = pair
    document, question = "the key is in the reader", "where is the key?"
    message = sharer.message(document)
    arrival = receiver.arrival(message, asked(question), SYSTEM)
    composed = receiver.decode(arrival.context)
    assert composed.index(document) < composed.index(question)
    reader = Agent("r", sharer, prompt=document, generate=None)
    options = {"max_new_tokens": 1}
    solver = Agent("s", receiver, system=SYSTEM, prompt=asked(question), generate=options)
    flow = Workflow("w", [reader, solver])
    flow.connect(reader, solver, ProjectedCacheChannel(FakeBridge(*pair)))
    (turn,) = flow.run().report.agents["s"]
    assert turn.prompt_tokens == len(arrival.context)


def test_messages_have_their_size_and_hold_their_passage(pair: Pair) -> None:
    """Passages come among others, which are not asked about where there are enough."""
    receiver = pair[1]
    made = contexts(pair, 150, count=3)
    golds = {context.passage for context in made}
    for context in made:
        assert context.passage in context.message
        assert 110 <= len(receiver.words(context.message)[0]) <= 160
        assert not any(other in context.message for other in golds - {context.passage})
        assert context.questions[0].answers[0] in context.passage
    assert made == contexts(pair, 150, count=3)


def test_a_passage_that_is_too_long_keeps_only_what_it_still_answers(pair: Pair) -> None:
    """Its end is cut, and a question about the end is not asked."""
    long = QaRow("the key is here. " + "and so on " * 40 + "last word", "what?", ("last word",))
    asked_first = replace(long, answers=("the key",))
    made = task_contexts([long, asked_first, *ROWS], pair[1], 60, count=9, questions=3)
    (cut,) = [one for one in made if one.passage.startswith("the key is here")]
    assert cut.questions == (asked_first,)
    assert all(one.questions for one in made)


def test_a_stranger_s_message_cannot_answer() -> None:
    """Another row whose message holds neither the passage nor, if possible, the answer."""
    one, two, three = (
        TaskContext(passage=text, message=text, questions=(QaRow(text, "?", (answer,)),))
        for text, answer in (("a b", "b"), ("c b", "c"), ("d e", "e"))
    )
    assert stranger([one, two, three], 0) == 2  # the nearest has the answer
    assert stranger([one, two, three], 2) == 1
    assert stranger([one, one], 0) is None


def test_passages_that_were_fitted_on_are_left_out_and_counted() -> None:
    """Eight words in a row are too many; the rest stays."""
    corpus = Corpus(
        train=("so: the key is in box 4 says the key, it said",),
        validation=(),
        sources=("x",),
        digest="",
    )
    rows = TaskRows.of(ROWS, corpus, source="f", checked=True, seed=0)
    assert rows.shared == 1 and len(rows.rows) == len(ROWS) - 1
    assert all("box 4" not in row.context for row in rows.rows)
