"""Small workflows on tiny models, for the tests of everything that runs."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_llama

from unspoken.agents import Agent, LocalModel, Workflow
from unspoken.agents.runtime.report import RunReport

Pair = tuple[LocalModel, LocalModel]
Models = dict[str, LocalModel]

DOCUMENT = "the key of the cache is in the document that the reader was for 漢 🙂\n" * 3
QUESTION = "who is the reader?"


@contextmanager
def own_cache(folder: Path) -> Iterator[None]:
    """Keep what is noted of models out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNSPOKEN_CACHE", str(folder))
        yield


def stored_model(folder: Path, seed: int = 0, **settings: Any) -> LocalModel:
    """A random Llama in float32, written to `folder` and loaded from there."""
    return LocalModel.load(str(tiny_llama(folder, seed, **settings)))


def sibling(model: LocalModel) -> LocalModel:
    """The same model with one weight changed."""
    changed: Any = copy.deepcopy(model.hf)
    changed.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    return LocalModel(changed, model.tokenizer)


def reader_solver(
    reads: LocalModel,
    solves: LocalModel,
    channel: Any = "auto",
    system: str | None = None,
    **edge: Any,
) -> Workflow:
    """A reader that only reads, and a solver that writes eight tokens."""
    reader = Agent("reader", reads, prompt="{{ inputs.document }}", generate=None)
    solver = Agent(
        "solver",
        solves,
        prompt="Question: {{ inputs.question }}",
        system=system,
        generate={"max_new_tokens": 8},
    )
    return Workflow("reader-solver", [reader, solver]).connect(reader, solver, channel, **edge)


def sound(report: RunReport) -> RunReport:
    """Check what holds of every report."""
    for name, turns in report.agents.items():
        for turn in turns:
            parts = turn.prefilled_tokens + turn.reused_tokens
            parts += turn.recomputed_tokens + turn.projected_tokens
            assert turn.prompt_tokens == parts, name
            assert min(turn.prefilled_tokens, turn.reused_tokens) >= 0, name
            assert min(turn.recomputed_tokens, turn.projected_tokens) >= 0, name
            assert turn.prefilled_tokens + turn.recomputed_tokens > 0, name
            assert (turn.ttft_s is None) == (turn.generated_tokens == 0), name
            assert turn.ttft_s is None or 0 < turn.ttft_s <= turn.seconds, name
    for edge in report.edges:
        assert edge.reused >= 0 and edge.repaired >= 0 and edge.projected >= 0
        assert edge.reused + edge.repaired + edge.projected <= edge.tokens
        assert edge.reused + edge.repaired == 0 or edge.bytes > 0 or edge.recomputed_layers
        assert edge.channel != "text" or edge.mode == "text"
    return report
